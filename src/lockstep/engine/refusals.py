"""What a model was seen to do that a strategy cannot keep: refused by name before anything is trained."""

from collections.abc import Sequence

import torch

from lockstep.engine.metrics import fingerprint
from lockstep.errors import RunFailed
from lockstep.strategies.base import Strategy

NAMED = 3


def refuse_model(strategy: Strategy, name: str) -> None:
    """RunFailed for the first thing that would be lost without a trace under the strategy of this name."""
    seen, ranks = strategy.observed, strategy.group.world_size
    if strategy.divides_parameters:
        _refuse(
            seen.written,
            f"{name}: the forward pass writes to {{}}, and what it writes is lost where ranks hold parts of the "
            "weights. Allowed: distributed.strategy=ddp or allreduce; or keep it in a buffer (register_buffer)",
        )
        _refuse(
            seen.gradient_hooks,
            f"{name}: the gradient of {{}} has hooks (register_hook or register_post_accumulate_grad_hook), which are "
            "not called where ranks hold parts of the weights. Allowed: distributed.strategy=ddp or allreduce; or do "
            "it in the forward pass",
        )
    if strategy.divides_parameters or not strategy.updates_weights:
        _refuse(
            [" and ".join(group) for group in seen.shared_memory],
            f"{name}: {{}} share memory without being one parameter, and would come apart where weights are moved. "
            "Allowed: distributed.strategy=ddp or allreduce; or one nn.Parameter under both names",
        )
    if not strategy.updates_weights:
        _refuse(
            [key for key in seen.written if key in seen.trained],
            f"{name}: the forward pass writes to {{}}, and the servers, which hold the weights, would not see it. "
            "Allowed: distributed.strategy=ddp or allreduce",
        )
    if ranks > 1 and strategy.shard().parts > 1:
        _refuse(
            seen.written_by_sample,
            f"the forward pass sets {{}} from the samples that it sees, and with {name} each of {ranks} ranks sees "
            "other ones, so the ranks' weights would part. Allowed: distributed.strategy=single with "
            "distributed.world_size=1; or make them buffers, of which rank 0's count",
        )


def _refuse(names: Sequence[str], text: str) -> None:
    if names:
        raise RunFailed(text.format(", ".join(names[:NAMED]) + " and others" * (len(names) > NAMED)))


def constants(module: torch.nn.Module) -> dict[str, int]:
    """Fingerprints of the buffers that no checkpoint holds."""
    return {
        f"{prefix}.{name}" if prefix else name: fingerprint(buffer)
        for prefix, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name in part._non_persistent_buffers_set
    }


def refuse_other_constants(module: torch.nn.Module, recorded: dict[str, int]) -> None:
    """RunFailed where a buffer that is in no checkpoint is another one here than in the process that looked first."""
    here = constants(module)
    if other := [name for name, print_ in here.items() if recorded.get(name, print_) != print_]:
        raise RunFailed(
            f"the model's function makes {other[0]} otherwise in each process, and no checkpoint holds it "
            "(persistent=False): it draws from something that is seeded neither by torch, numpy.random nor random. "
            "Draw from one of these, or make the buffer persistent"
        )
