"""The parameters of a model laid out flat and cut into one slice a server, of equal size to the element.

A slice may begin and end within a parameter: the optimizers here treat each element by itself, so a part of a
parameter can be updated alone, and no large parameter can unbalance the servers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lockstep.collectives.schedule import chunk_bounds
from lockstep.errors import RunFailed
from lockstep.strategies._layout import COUNT, slot_like

Named = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop - 1`` of a parameter; in its server's slice they begin at ``offset``."""

    name: str
    start: int
    stop: int
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """This piece of a tensor that is laid out as the server's slice is."""
        return flat[self.offset : self.offset + self.stop - self.start]


@dataclass(frozen=True)
class Slice:
    """What one server holds: elements ``start`` to ``stop - 1`` of all parameters side by side."""

    server: int
    start: int
    stop: int
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """How many weights."""
        return self.stop - self.start

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """Room for a gradient: (elements + pieces,), behind the gradient a mark for each piece that has one."""
        return torch.zeros(self.elements + len(self.pieces), dtype=dtype)

    def take(self, gradients: dict[str, Tensor | None], room: Tensor) -> None:
        """Fill it. A parameter without a gradient leaves zeros and no mark."""
        for number, piece in enumerate(self.pieces):
            gradient = gradients[piece.name]
            room[self.elements + number] = float(gradient is not None)
            if gradient is None:
                piece.of(room).zero_()
            else:
                piece.of(room).copy_(gradient.reshape(-1)[piece.start : piece.stop])


NOTHING_TO_TRAIN = "the model has no parameter to train: at least one must require a gradient"


def trained(module: nn.Module) -> Named:
    """The parameters that are shared out, in the module's order. All must be of one type."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    kinds = {parameter.dtype for _, parameter in named}
    if not kinds:
        raise RunFailed(NOTHING_TO_TRAIN)
    if len(kinds) != 1:
        raise RunFailed(
            "the strategy parameter_server needs parameters of one type, and the model has "
            + ", ".join(sorted(map(str, kinds)))
        )
    return named


def flatten(named: Named) -> Tensor:
    """Lay the parameters side by side: (elements,). They become views of it."""
    flat = torch.cat([parameter.detach().reshape(-1) for _, parameter in named])
    start = 0
    for _, parameter in named:
        parameter.data = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat


def cut(named: Named, servers: int) -> list[Slice]:
    """Share the elements out evenly: sizes differ by one at most."""
    elements = sum(parameter.numel() for _, parameter in named)
    if servers > elements:
        raise RunFailed(f"distributed.strategy.servers is {servers}, and the model has {elements} weights")
    bounds = chunk_bounds(elements, servers)
    return [
        Slice(number, start, stop, tuple(_pieces(named, start, stop)))
        for number, (start, stop) in enumerate(bounds)
    ]


def _pieces(named: Named, start: int, stop: int) -> Iterator[Piece]:
    begin = 0
    for name, parameter in named:
        end = begin + parameter.numel()
        low, high = max(begin, start), min(end, stop)
        if low < high:
            yield Piece(name, low - begin, high - begin, low - start)
        begin = end


def cut_slots(slots: dict[str, Tensor], piece: Piece, weights: Tensor) -> dict[str, Tensor]:
    """A piece's part of a whole optimizer state (``name/key``), as ``weights`` are; a count of updates is copied."""
    prefix = f"{piece.name}/"
    named = {key.removeprefix(prefix): value for key, value in slots.items() if key.startswith(prefix)}
    return {
        key: slot_like(key, value if key == COUNT else value.reshape(-1)[piece.start : piece.stop], weights)
        for key, value in named.items()
        if "/" not in key
    }


def join_slots(
    found: Iterable[tuple[Piece, str, Tensor]], shapes: dict[str, torch.Size]
) -> dict[str, Tensor]:
    """The whole optimizer state from the pieces of all servers."""
    whole: dict[str, Tensor] = {}
    for piece, key, value in found:
        name = f"{piece.name}/{key}"
        if not value.dim():
            whole[name] = value
            continue
        room = whole.setdefault(name, torch.zeros(shapes[piece.name], dtype=value.dtype))
        room.view(-1)[piece.start : piece.stop].copy_(value)
    return whole
