"""Two thin matrices instead of a large one, found by one step of the power method for each training step.

A gradient matrix M of n x m becomes P (n x r) and Q (m x r), and only these are summed over the ranks: r (n + m)
numbers instead of n m. Sent by a rank: what the all-reduce makes of them, 2 (N - 1)/N * 4 bytes each for fp32 on a
ring, for all matrices of a bucket, its vectors and one mark a parameter. Vogels, Karimireddy and Jaggi, "PowerSGD",
NeurIPS 2019 (arXiv 1905.13727): algorithm 1 is ``reduce``, algorithm 2 (error feedback) is in ``base``.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lockstep.collectives import execute
from lockstep.compressors.base import Compressor, Part
from lockstep.transports.base import Transport


@dataclass(frozen=True)
class _Matrix:
    """One parameter's gradient as a matrix: (rows, the rest)."""

    place: int  # of its parameter in the bucket
    span: slice
    rows: int
    columns: int
    rank: int

    def of(self, total: Tensor) -> Tensor:
        """(rows, columns): a view."""
        return total[self.span].view(self.rows, self.columns)


class PowerSGD(Compressor):
    """``rank`` is r. Vectors, and matrices that would not become smaller, are summed as they are.

    ``warm_start`` begins the power method with the last step's Q, so that it converges over the steps;
    else with a new random matrix in every step. All ranks compute the sum from the same P and Q, by the
    same instructions: on machines with different processors the bits may part, which the run's fingerprints show.
    """

    direct = False

    def __init__(
        self,
        *,
        rank: Annotated[int, Field(ge=1, le=1024)] = 2,
        error_feedback: bool = True,
        warm_start: bool = True,
    ) -> None:
        super().__init__(error_feedback=error_feedback)
        self.rank, self.warm_start = rank, warm_start
        self._matrices: dict[int, list[_Matrix]] = {}
        self._factors: dict[int, list[Tensor]] = {}  # Q of each matrix of a bucket, summed over the ranks
        self._before: dict[int, list[Tensor]] = {}  # the same when the step began
        self._draws = torch.Generator().manual_seed(0)  # the same on every rank, and nobody else's draws

    def begin(self, scale: float) -> None:
        """The factors are there to be gone back to; they have a direction, and no scale that matters."""
        super().begin(scale)
        self._before = dict(self._factors)

    def undo(self) -> None:
        """Forget this step's factors as well."""
        super().undo()
        self._factors = self._before

    def reduce(self, part: Part, transport: Transport) -> None:
        """Sum P and what is not compressed, make P orthonormal, then sum Q."""
        total = self.residuals.added_to(part)
        if part.number not in self._matrices:
            self._matrices[part.number] = matrices(part, self.rank)
        found = self._matrices[part.number]
        thin = {matrix.place for matrix in found}
        rest = [span for place, span in enumerate(part.spans()) if place not in thin]
        starts = self._starts(part.number, found, total.dtype)
        products = [matrix.of(total) @ start for matrix, start in zip(found, starts, strict=True)]
        marks = part.marks.to(total.dtype)
        parts = _summed(part, transport, [*products, *(total[span] for span in rest), marks])
        bases = [torch.linalg.qr(product).Q for product in parts[: len(found)]]
        locals_ = [matrix.of(total).T @ basis for matrix, basis in zip(found, bases, strict=True)]
        factors = _summed(part, transport, locals_) if found else []
        self._factors[part.number] = factors
        result = torch.empty_like(total)
        for matrix, basis, local, factor in zip(found, bases, locals_, factors, strict=True):
            matrix.of(total).sub_(basis @ local.T)
            torch.mm(basis, factor.T, out=matrix.of(result))
        for span, summed in zip(rest, parts[len(found) :], strict=False):
            result[span] = summed
            total[span] = 0
        self.residuals.keep(part, total)
        part.gradients.copy_(result)
        part.marks.copy_(parts[-1])

    def _starts(self, number: int, found: list[_Matrix], dtype: torch.dtype) -> list[Tensor]:
        if self.warm_start and number in self._factors:
            return self._factors[number]
        return [
            torch.randn(matrix.columns, matrix.rank, generator=self._draws, dtype=dtype) for matrix in found
        ]


def matrices(part: Part, rank: int) -> list[_Matrix]:
    """The gradients that two factors of this rank make smaller."""
    found = []
    for place, (span, shape) in enumerate(zip(part.spans(), part.shapes, strict=True)):
        if len(shape) < 2 or not shape.numel():
            continue
        rows, columns = shape[0], shape.numel() // shape[0]
        if rank * (rows + columns) < rows * columns:
            found.append(_Matrix(place, span, rows, columns, rank))
    return found


def _summed(part: Part, transport: Transport, tensors: list[Tensor]) -> list[Tensor]:
    """All-reduce some tensors as one."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    execute.run(part.schedule, transport, flat)
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
