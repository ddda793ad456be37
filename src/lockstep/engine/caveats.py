"""What a model does that the promise of the same maths at any world size does not cover."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lockstep.strategies.base import Strategy


def of(strategy: Strategy) -> list[str]:
    """A sentence for each, for the user; empty for most models, for one rank, and for a single process."""
    if strategy.group.world_size == 1:
        return []
    found = []
    if names := _names(strategy.module, _BatchNorm):
        found.append(
            f"{names} normalises by the statistics of each rank's own samples: another world size trains another "
            "model. GroupNorm or LayerNorm would not"
        )
    if (names := _names(strategy.module, _DropoutNd, "p")) and not strategy.draws_by_shard:
        found.append(
            f"{names} draws by rank: a repeated run has the same bits, but another world size draws otherwise"
        )
    return found


def _names(module: nn.Module, kind: type[nn.Module], active: str = "training") -> str:
    names = [
        name for name, part in module.named_modules() if isinstance(part, kind) and getattr(part, active)
    ]
    return f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else ""
