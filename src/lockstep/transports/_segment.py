"""One piece of memory that all ranks of a machine map, and that no death can leave behind.

It is an anonymous file (``memfd_create``): it has no name in any folder, so the kernel frees it when the last
process that maps it ends, however it ends. The peers open it through ``/proc/<pid>/fd`` of rank 0, which the
kernel allows to the same user alone; where it is to be found stands beside the rendezvous.
"""

import json
import mmap
import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lockstep.files import write_json
from lockstep.linux import Peer, anonymous_file, start_ticks
from lockstep.running_time import RunningTime
from lockstep.transports.base import Group, Label, TransportError

LINE = 64  # bytes of a cache line: no two ranks write to the same one
WORDS = LINE // 8
KINDS = ("pid", "ticks", "arrived", "left", "even", "odd", "bell")  # a rank's lines of control words
_JOIN = Label("join")
_POLL_SECONDS = 0.001


@dataclass(frozen=True)
class Layout:
    """Where everything lies. Control words are counted in 8 bytes, data in bytes."""

    ranks: int
    area_bytes: int  # a rank's own part for collectives
    slots: int
    slot_bytes: int  # of a pair's ring of slots, with its header

    def word(self, kind: str, rank: int) -> int:
        """The index of the first control word of one of a rank's lines; line 0 is for all."""
        return (1 + rank * len(KINDS) + KINDS.index(kind)) * WORDS

    def pair_words(self, source: int, to: int) -> tuple[int, int]:
        """The indices of an ordered pair's counters: pieces put, which the source writes, and taken."""
        line = 1 + self.ranks * len(KINDS) + 2 * (source * self.ranks + to)
        return line * WORDS, (line + 1) * WORDS

    @property
    def control_bytes(self) -> int:
        """All control words, in whole pages."""
        lines = 1 + self.ranks * len(KINDS) + 2 * self.ranks**2
        return -(-lines * LINE // mmap.PAGESIZE) * mmap.PAGESIZE

    def area(self, rank: int) -> int:
        """Where a rank's own part begins."""
        return self.control_bytes + rank * self.area_bytes

    def slot(self, source: int, to: int, number: int) -> int:
        """Where a slot of an ordered pair begins."""
        pair = source * self.ranks + to
        first = self.control_bytes + self.ranks * self.area_bytes
        return first + (pair * self.slots + number % self.slots) * self.slot_bytes

    @property
    def total_bytes(self) -> int:
        """All of it. Pages that nobody touches cost nothing."""
        return self.slot(self.ranks, 0, 0)


class Segment:
    """The memory, mapped by all ranks when the constructor returns."""

    def __init__(self, group: Group, layout: Layout) -> None:
        self.rank, self.layout = group.rank, layout
        self._seconds = group.timeout_seconds
        self._place = group.rendezvous.with_name(group.rendezvous.name + "-shm")
        waited = RunningTime()
        descriptor = self._create() if self.rank == 0 else self._open(waited)
        try:
            self.memory = mmap.mmap(descriptor, layout.total_bytes)
            self.bytes = memoryview(self.memory)
            self.words = memoryview(self.memory)[: layout.control_bytes].cast("Q")
            self._meet(waited)
        finally:
            os.close(descriptor)
        self._processes = {
            rank: Peer(self.words[layout.word("pid", rank)], self.words[layout.word("ticks", rank)])
            for rank in range(layout.ranks)
            if rank != self.rank
        }

    def _create(self) -> int:
        descriptor = anonymous_file("lockstep")
        os.ftruncate(descriptor, self.layout.total_bytes)
        pid = os.getpid()
        where = {"pid": pid, "start_ticks": start_ticks(pid), "descriptor": descriptor}
        write_json(self._place, where | {"bytes": self.layout.total_bytes})
        return descriptor

    def _open(self, waited: RunningTime) -> int:
        """Wait for rank 0's word. One that an earlier process left is passed over: its process is gone."""
        while waited.seconds() < self._seconds:
            try:
                where = json.loads(self._place.read_text(encoding="utf-8"))
                if start_ticks(where["pid"]) == where["start_ticks"]:
                    descriptor = os.open(f"/proc/{where['pid']}/fd/{where['descriptor']}", os.O_RDWR)
                    if where["bytes"] == self.layout.total_bytes:
                        return descriptor
                    os.close(descriptor)
                    raise self._failed(0, f"has a segment of {where['bytes']} bytes, and other options")
            except (FileNotFoundError, ValueError):
                pass
            time.sleep(_POLL_SECONDS)
        raise self._failed(0, f"did not create the shared memory within {self._seconds:g} s", "hang")

    def _meet(self, waited: RunningTime) -> None:
        layout, words = self.layout, self.words
        words[layout.word("ticks", self.rank)] = start_ticks(os.getpid()) or 0
        words[layout.word("pid", self.rank)] = os.getpid()
        waiting = set(range(layout.ranks))
        while waiting := {rank for rank in waiting if not words[layout.word("pid", rank)]}:
            if waited.seconds() > self._seconds:
                raise self._failed(min(waiting), f"did not join within {self._seconds:g} s", "hang")
            time.sleep(_POLL_SECONDS)
        if self.rank == 0:
            self._place.unlink(missing_ok=True)
            words[0] = 1
        while not words[0]:  # so that nobody finds this segment when the next one is meant
            if waited.seconds() > self._seconds:
                raise self._failed(0, f"did not join within {self._seconds:g} s", "hang")
            time.sleep(_POLL_SECONDS)

    def _failed(self, peer: int, how: str, cause: str = "exception") -> TransportError:
        return TransportError(f"rank {peer} {how}", rank=self.rank, peer=peer, label=_JOIN, cause=cause)

    def dead(self, rank: int) -> bool:
        """Whether a rank's process has ended (a zombie has)."""
        return self._processes[rank].ended()

    def left(self, rank: int) -> bool:
        """Whether a rank has said that it leaves."""
        return bool(self.words[self.layout.word("left", rank)])

    def tensor(self, start: int, elements: int, dtype: torch.dtype) -> Tensor:
        """A part of the memory as a flat tensor."""
        return torch.frombuffer(self.memory, dtype=dtype, count=elements, offset=start)

    def close(self) -> None:
        """Say that this rank leaves. The memory goes with the last tensor that lies in it."""
        self.words[self.layout.word("left", self.rank)] = 1
        for process in self._processes.values():
            process.close()
