"""The shared memory of one machine: what one rank writes, the others read where it lies.

Messages go through a ring of slots for each ordered pair of ranks. The all-reduce does without messages: every
rank copies its part in, and sums straight from its peers' memory (two passes over the data where gloo needs
a dozen copies through the kernel).

Why it is correct: a rank writes data first and then a counter, readers read the counter first and then the data.
x86-64 keeps both orders by itself. Processors that do not are refused, since Python offers no barrier for them.
"""

import platform
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lockstep.errors import UsageError
from lockstep.linux import require_linux
from lockstep.transports._frames import HEADER_BYTES, code_of, readable
from lockstep.transports._segment import Layout, Segment
from lockstep.transports._slots import HEAD, Slots
from lockstep.transports._waiting import Waiting
from lockstep.transports.base import Group, Pending, Reduce, Transport

_AREAS = 2  # each rank writes to one while its peers may still read the other
_SLOTS = 8  # of a pair
_WHOLE_BYTES = 1 << 16  # up to here another wait costs more than reading all of it
_ORDERED = ("x86_64", "AMD64")


def require_order(machine: str) -> None:
    """Refuse a processor on which another rank may see the counter before the data."""
    if machine not in _ORDERED:
        raise UsageError(
            f"the transport shm needs an x86-64 processor, and this is {machine}: others may reorder "
            "writes to shared memory. Use tcp or gloo."
        )


class Shm(Transport):
    """Ranks of one machine. ``piece_kb`` is how much the all-reduce takes at once: what fits the caches."""

    header_bytes = HEADER_BYTES

    def __init__(
        self,
        group: Group,
        *,
        piece_kb: Annotated[int, Field(ge=4, le=65536)] = 1024,
        slot_kb: Annotated[int, Field(ge=4, le=65536)] = 128,
    ) -> None:
        require_linux("the transport shm")
        require_order(platform.machine())
        super().__init__(group)
        self.piece_bytes, self.slot_bytes = piece_kb * 1024, slot_kb * 1024
        self._layout = Layout(self.size, _AREAS * self.piece_bytes, _SLOTS, HEAD + self.slot_bytes)
        self._segment = Segment(group, self._layout)
        self._words = self._segment.words
        self._arrived = [self._layout.word("arrived", rank) for rank in range(self.size)]
        self._others = [rank for rank in range(self.size) if rank != self.rank]
        self._phase = 0  # of collectives: what this rank's arrived counter says
        self._parity = 0  # of pieces
        self._calls = 0  # of the all-reduce
        self._doing = [
            [self._layout.word(kind, rank) for rank in range(self.size)] for kind in ("even", "odd")
        ]
        self._areas: dict[torch.dtype, list[list[Tensor]]] = {}  # by parity and rank
        self._waiting = Waiting(self, self._segment)
        self._slots = Slots(self, self._segment, self._waiting)

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """Copied into slots as they become free, whenever this rank sends or waits."""
        return self._slots.send(tensor, to, tag)

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """Copied out of the slots when it is waited for."""
        return self._slots.receive(into, source, tag, None)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """Reduced from where it lies, piece by piece: ``reduce`` must work element by element."""
        return self._slots.receive(into, source, tag, reduce)

    def close(self) -> None:
        """Tell the peers; the memory is the kernel's to free."""
        self._segment.close()
        self._waiting.ring(*self._others)

    def all_reduce(self, buffer: Tensor) -> None:
        """Sum a flat tensor over all ranks, in the order of the ranks: the same bits on each of them.

        Each rank writes the buffer's size into the shared memory, once.
        """
        if self.size == 1:
            return
        total, size = buffer.numel(), buffer.element_size()
        self._announce(buffer)
        elements = self.piece_bytes // size
        whole = self.size == 2 or total * size <= _WHOLE_BYTES
        reduce_piece = self._reduce_whole if whole else self._reduce_slices
        if total <= elements:
            reduce_piece(buffer)
        else:
            for start in range(0, total, elements):
                reduce_piece(buffer[start : start + elements])
        self.wire_bytes += total * size

    def _reduce_whole(self, own: Tensor) -> None:
        """Every rank sums all of it: one wait, and for two ranks no more copying than slices would need."""
        parts = self._parts(own)
        parts[self.rank].copy_(own)
        self._meet()
        if self.rank < 2:
            own.add_(parts[1 - self.rank])  # a sum of two is the same either way round
        else:
            torch.add(parts[0], parts[1], out=own)
        for part in parts[2:]:
            own.add_(part)

    def _reduce_slices(self, own: Tensor) -> None:
        """Every rank sums its own slice of it for all: two waits, and the least reading."""
        parts = self._parts(own)
        count = own.numel()
        start, stop = count * self.rank // self.size, count * (self.rank + 1) // self.size
        mine = parts[self.rank]
        mine[:start].copy_(own[:start])
        mine[stop:].copy_(own[stop:])
        self._meet()
        total = mine[start:stop]  # nobody reads it before the next meeting
        inputs = [(own if rank == self.rank else part)[start:stop] for rank, part in enumerate(parts)]
        torch.add(inputs[0], inputs[1], out=total)
        for piece in inputs[2:]:
            total.add_(piece)
        self._meet()
        for rank, part in enumerate(parts):
            start, stop = count * rank // self.size, count * (rank + 1) // self.size
            own[start:stop].copy_(part[start:stop])

    def _parts(self, own: Tensor) -> list[Tensor]:
        """Where each rank's copy of this piece lies; the next piece's lies elsewhere."""
        areas = self._areas.get(own.dtype) or self._typed_areas(own.dtype)
        self._parity ^= 1
        return [area[: own.numel()] for area in areas[self._parity]]

    def _typed_areas(self, dtype: torch.dtype) -> list[list[Tensor]]:
        elements = self.piece_bytes // dtype.itemsize
        starts = [self._layout.area(rank) for rank in range(self.size)]
        self._areas[dtype] = [
            [self._segment.tensor(start + parity * self.piece_bytes, elements, dtype) for start in starts]
            for parity in range(_AREAS)
        ]
        return self._areas[dtype]

    def _announce(self, buffer: Tensor) -> None:
        """Write down what this rank is about to reduce; the peers compare when they meet it."""
        label = self.label
        self._calls += 1
        self._plan = (code_of(buffer.dtype), buffer.nbytes, label.bucket, label.step)
        start = self._doing[self._calls & 1][self.rank]  # a peer may still be reading the last call's
        for offset, value in enumerate(self._plan):
            self._words[start + offset] = value
        self._compared = False

    def _compare(self) -> None:
        """All ranks must be in the same call: else they would sum what does not belong together."""
        self._compared = True
        for peer in self._others:
            start = self._doing[self._calls & 1][peer]
            found = tuple(self._words[start : start + 4])
            if found != self._plan:
                fields = zip(("dtype", "length", "bucket", "step"), found, self._plan, strict=True)
                field, has, expected = next(each for each in fields if each[1] != each[2])
                raise self.mismatch(peer, self.label, field, readable(field, has), readable(field, expected))

    def _meet(self) -> None:
        """Say that this rank has written, and wait until all have."""
        self._phase += 1
        words, phase = self._words, self._phase
        words[self._arrived[self.rank]] = phase
        self._waiting.ring(*self._others)
        for peer in self._others:
            index = self._arrived[peer]
            if words[index] < phase:
                self._waiting.until(partial(self._reached, index), peer, self.label)
        if not self._compared:
            self._compare()

    def _reached(self, index: int) -> bool:
        return bool(self._words[index] >= self._phase)
