"""A checkpoint as strategies see it: blocks of tensors, which say where in the whole they stand.

A strategy whose ranks hold all of the state saves it by ``Strategy.state`` and takes it back by ``load``. One
whose ranks hold parts of it is ``sharded``: every rank gives its own blocks (``Strategy.slices``) and reads those
that it needs (``Strategy.restore``) from what any strategy saved. Names are those of the user's whole module:
parameters and buffers in ``model``, ``parameter/key`` in ``optimizer``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Slice:
    """A block of a tensor of ``shape``: it begins at ``offsets`` and is as large as ``data``.

    Together the ranks' slices hold each element of a tensor exactly once: what several ranks have (a scalar, a
    replica), one of them gives. A block without elements need not be given.
    """

    data: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> "Slice":
        """All of a tensor."""
        return cls(tensor, tuple(tensor.shape), (0,) * tensor.dim())


Slices = dict[str, dict[str, Slice]]


class Stored(Protocol):
    """What a checkpoint holds, read piece by piece, in the precision that this run trains in."""

    def names(self, part: str) -> list[str]:
        """The tensors of ``model``, ``optimizer`` or ``strategy``; none where the part is missing."""

    def shape(self, part: str, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""

    def read(
        self, part: str, name: str, offsets: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """The block of ``shape`` at ``offsets``, a tensor of its own; all of the tensor without the two."""

    def whole(self) -> State:
        """Everything, for a strategy whose ranks hold all of it."""
