"""Under tensor parallelism: whether what the columns hold alike has the same gradient on all of them.

Every rank of a group sees the same samples, so a weight that is not cut has the same gradient on each, unless it is
used between a colwise and a rowwise layer: there a rank has columns of its own, and sees a part of that gradient only.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lockstep.errors import RunFailed
from lockstep.strategies._dtensors import local

# Shares by which sums of squares differ. Of the same values in the same order they do not; and of one weight they must
# differ by far more than rounding, and by less than a part does.
WORTH_A_LOOK = 1e-9
DIFFERENT = 1e-3


def divided_by(parameter: Tensor) -> set[str]:
    """The dimensions of the mesh of ranks that cut a parameter."""
    if not isinstance(parameter, DTensor):
        return set()
    names = parameter.device_mesh.mesh_dim_names or ()
    return {name for name, way in zip(names, parameter.placements, strict=True) if not way.is_replicate()}


class Alike:
    """The weights that no column has a part of, as one rank sees them."""

    def __init__(self, module: nn.Module, column: int, columns: int) -> None:
        self._column, self._columns = column, columns
        self._whole = {
            name: p
            for name, p in module.named_parameters()
            if p.requires_grad and "tensor" not in divided_by(p)
        }

    def squares(self) -> list[float]:
        """For each column: the sum of the squares of these gradients on this rank, if it is its column."""
        gradients = [local(p.grad) for p in self._whole.values() if p.grad is not None]
        return self._placed(_squares(gradients))

    def check(self, columns: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Given these over all ranks; RunFailed where one weight's gradient is not the same in every column."""
        if not _differ(columns, WORTH_A_LOOK):
            return
        own = [_squares([] if p.grad is None else [local(p.grad)]) for p in self._whole.values()]
        table = total(
            torch.tensor([each for squares in own for each in self._placed(squares)], dtype=torch.float64)
        )
        for name, row in zip(self._whole, table.view(len(own), self._columns), strict=True):
            # A gradient that is nothing but rounding differs by all of itself, and by nothing beside the others.
            if _differ(row, DIFFERENT) and float(row.max() - row.min()) > WORTH_A_LOOK * float(columns.max()):
                raise RunFailed(
                    f"tensor: the gradient of {name} is another on each rank, though all hold it whole: it is used "
                    "between a colwise and a rowwise layer, where each rank has columns of its own and sees only their "
                    "part, or something random is drawn beside them. Allowed there: what has no weights and draws "
                    "nothing of its own; or leave these two layers out of the model's tensor plan"
                )

    def _placed(self, squares: float) -> list[float]:
        return [squares if column == self._column else 0.0 for column in range(self._columns)]


def _squares(gradients: list[Tensor]) -> float:
    """In double precision, or rounding would hide what is small beside the rest."""
    full = [gradient for gradient in gradients if gradient.numel()]
    return float(torch.stack(torch._foreach_norm(full, 2, torch.float64)).square().sum()) if full else 0.0


def _differ(values: Tensor, share: float) -> bool:
    """Numbers that overflowed tell nothing."""
    least, most = float(values.min()), float(values.max())
    return math.isfinite(most) and most - least > share * most
