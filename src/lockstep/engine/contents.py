"""What the tensors of a checkpoint are, whichever files hold them: read block by block, mapped, not loaded.

A part (`model`, `optimizer`, `strategy`) is one file, `model.safetensors`, or a file of each rank that had slices,
`model-00002-of-00004.safetensors`. Of a slice the file's header says where it stands: under the key `slices` a JSON
object of ``{name: {"shape": [...], "offsets": [...]}}``; a tensor that it does not name is whole. Complex numbers of
double precision, which the format has no type for, are stored as pairs of real ones, with a last dimension of 2 more:
under ``complex`` stands a JSON list of their names.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lockstep.errors import CorruptRecord
from lockstep.strategies._state import Slice, State

PARTS = ("model", "optimizer", "strategy")
ALWAYS = ("model", "optimizer")  # of every checkpoint, if only without a tensor
HEADER = "slices"
PAIRS = "complex"
_NAME = re.compile(r"(model|optimizer|strategy)(?:-(\d{5})-of-(\d{5}))?\.safetensors")

Index = tuple[slice, ...]


def file_name(part: str, rank: int | None = None, world_size: int = 1) -> str:
    """model.safetensors, or that of a rank's slices, counted from 1 like pages: model-00002-of-00004.safetensors."""
    return f"{part}.safetensors" if rank is None else f"{part}-{rank + 1:05}-of-{world_size:05}.safetensors"


def header(slices: dict[str, Slice]) -> dict[str, str]:
    """The header of a file of slices."""
    places = {
        name: {"shape": (*one.shape, 2), "offsets": (*one.offsets, 0)}
        if stored_as_pairs(one.data)
        else {"shape": one.shape, "offsets": one.offsets}
        for name, one in slices.items()
    }
    return {HEADER: json.dumps(places), **header_of_pairs({name: one.data for name, one in slices.items()})}


def header_of_pairs(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What a file's header says of its complex tensors; empty where none is stored as pairs."""
    names = [name for name, tensor in tensors.items() if stored_as_pairs(tensor)]
    return {PAIRS: json.dumps(names)} if names else {}


def stored_as_pairs(tensor: Tensor) -> bool:
    """Whether the format has no type for it."""
    return tensor.dtype == torch.complex128


@dataclass(frozen=True)
class _Piece:
    file: Any  # of safetensors
    name: str
    offsets: tuple[int, ...]
    size: tuple[int, ...]
    in_pairs: bool  # complex numbers, each stored as two real ones

    def take(self, index: Index) -> Tensor:
        """A view of the mapped file: only what is copied from it is read."""
        found: Tensor = self.file.get_slice(self.name)[index]
        return from_pairs(found) if self.in_pairs else found

    def whole(self) -> Tensor:
        """All of it, mapped."""
        found: Tensor = self.file.get_tensor(self.name)
        if not found.numel():  # which all begin at one address, and torch.save does not take that for chance
            found = found.clone()
        return from_pairs(found) if self.in_pairs else found

    def overlap(self, start: Sequence[int], size: Sequence[int]) -> tuple[Index, Index] | None:
        """Where it overlaps with a block, seen from the piece and from the block; None where it does not."""
        own, others = [], []
        for at, count, begin, wanted in zip(self.offsets, self.size, start, size, strict=True):
            low, high = max(at, begin), min(at + count, begin + wanted)
            if low >= high:
                return None
            own.append(slice(low - at, high - at))
            others.append(slice(low - begin, high - begin))
        return tuple(own), tuple(others)


def from_pairs(found: Tensor) -> Tensor:
    """Of a copy: files align to 8 bytes, and torch reads a complex number of 16 as one that is aligned to as many."""
    return torch.view_as_complex(found.clone(memory_format=torch.contiguous_format))


class Contents:
    """An open checkpoint. Files stay mapped until ``close``; what ``read`` gave stays good after it."""

    def __init__(self, folder: Path) -> None:
        """Raises CorruptRecord where the files are no safetensors or their slices are no whole."""
        self.folder = folder
        self._files = contextlib.ExitStack()
        self._pieces: dict[str, dict[str, list[_Piece]]] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        try:
            for path in sorted(folder.iterdir()):
                if found := _NAME.fullmatch(path.name):
                    self._take_in(found[1], path)
            self._refuse_holes()
        except BaseException:
            self.close()
            raise

    def _take_in(self, part: str, path: Path) -> None:
        pieces = self._pieces.setdefault(part, {})
        shapes = self._shapes.setdefault(part, {})
        try:
            file = self._files.enter_context(safe_open(path, framework="pt"))
            about = file.metadata() or {}
            places, pairs = json.loads(about.get(HEADER, "{}")), set(json.loads(about.get(PAIRS, "[]")))
            for name in file.keys():  # noqa: SIM118
                size = tuple(file.get_slice(name).get_shape())
                place = places.get(name, {"shape": size, "offsets": [0] * len(size)})
                shape = tuple(int(count) for count in place["shape"])
                offsets = tuple(int(count) for count in place["offsets"])
                inside = len(shape) == len(offsets) == len(size) and all(
                    0 <= start <= start + count <= whole
                    for start, count, whole in zip(offsets, size, shape, strict=True)
                )
                if name in pairs:
                    if not inside or (size[-1:], shape[-1:]) != ((2,), (2,)):
                        raise ValueError(f"{name} is said to be complex, and its last dimension is not of 2")
                    size, shape, offsets = size[:-1], shape[:-1], offsets[:-1]
                if not inside or shapes.setdefault(name, shape) != shape:
                    raise ValueError(f"{name} has a slice that does not fit the others")
                pieces.setdefault(name, []).append(_Piece(file, name, offsets, size, name in pairs))
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptRecord(f"{path} cannot be read: {error}") from None

    def _refuse_holes(self) -> None:
        for part, named in self._pieces.items():
            for name, pieces in named.items():
                found = sum(math.prod(piece.size) for piece in pieces)
                wanted = math.prod(self._shapes[part][name])
                if found != wanted:
                    raise CorruptRecord(
                        f"{self.folder}: the slices of {part} {name} have {found:,} elements together, and the whole "
                        f"has {wanted:,}"
                    )

    def parts(self) -> list[str]:
        """Which parts there are."""
        return [part for part in PARTS if part in self._pieces]

    def names(self, part: str) -> list[str]:
        """The tensors of a part; none where it is missing."""
        return sorted(self._pieces.get(part, {}))

    def shape(self, part: str, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return self._shapes[part][name]

    def read(
        self, part: str, name: str, offsets: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """The block of ``shape`` at ``offsets``, or the whole tensor: one of its own, on the CPU, as it was saved."""
        whole = self._shapes[part][name]
        start = tuple(offsets) if offsets is not None else (0,) * len(whole)
        size = tuple(shape) if shape is not None else whole
        assert all(a + b <= c for a, b, c in zip(start, size, whole, strict=True)), (name, start, size, whole)
        try:
            return self._assembled(self._pieces[part][name], start, size)
        except SafetensorError as error:
            raise CorruptRecord(f"{self.folder}: {part} {name} cannot be read: {error}") from None

    @staticmethod
    def _assembled(pieces: list[_Piece], start: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
        block: Tensor | None = None
        for piece in pieces:
            overlap = piece.overlap(start, size)
            if overlap is None:
                continue
            source, target = overlap
            found = piece.take(source)
            if block is None:
                block = torch.empty(size, dtype=found.dtype)
            block[target] = found
        if block is None:  # nothing is asked for: of no elements, but of the right type
            block = pieces[0].take(tuple(slice(0, 0) for _ in size)).new_empty(size)
        return block

    def whole(self) -> State:
        """Everything; of an optimizer that keeps nothing (plain SGD) there may be no file.

        What one file holds whole stays mapped from it: whoever keeps it makes a copy.
        """
        found = {part: {name: self._mapped(part, name) for name in self.names(part)} for part in self.parts()}
        return {part: {} for part in ALWAYS} | found

    def _mapped(self, part: str, name: str) -> Tensor:
        pieces = self._pieces[part][name]
        if len(pieces) > 1:
            return self.read(part, name)
        return pieces[0].whole()

    def close(self) -> None:
        """Unmap."""
        self._files.close()
