"""The board: one page of memory that the ranks write and the launcher reads, mapped from a file.

It carries what may not cost a message: how far each rank is and what it is doing (for the progress bar
and for telling who hangs), the request to stop, and fingerprints of the parameters. Every field is eight
aligned bytes with one writer, so that each is read whole; nothing is locked.

Stopping after the same step needs no collective of its own. Rank 0 sees the request between two steps,
after ``k`` of them, and writes ``stop_after = k + 1`` *before* it enters the collective of step k + 1. No
rank can leave that collective without rank 0 having entered it, so whoever has finished step k + 1 finds
the number there. That holds for every strategy in which a step of one rank waits for all the others. Where the
ranks wait for each other only every H steps, rank 0 writes the number of the next such step, for the same reason.
Where they never do (an asynchronous parameter server), a server process writes it: see ``stop_beyond``.
"""

import mmap
import os
import time
from pathlib import Path
from types import TracebackType

PHASES = ("starting", "data", "compute", "apply", "validation", "checkpoint", "done", "serving")

_HEADER = ("world_size", "servers", "stop_requested", "stop_after", "total_steps", "steps_per_epoch")
_INTEGERS = (
    "step",
    "start",
    "phase",
    "epoch",
    "samples",
    "beats",
    "even_step",
    "even_digest",
    "odd_step",
    "odd_digest",
)
_FLOATS = ("loss", "launched", "first_step")
_SLOT = len(_INTEGERS) + len(_FLOATS)


class Board:
    """A view of the page. ``rank`` is the writer's own slot; the launcher opens it with none."""

    def __init__(self, path: Path, rank: int | None = None) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._whole = memoryview(self._map)
        self._integers = self._whole.cast("q")
        self._floats = self._whole.cast("d")
        self.rank = rank

    @classmethod
    def create(cls, path: Path, world_size: int, servers: int = 0) -> "Board":
        """Make the file, all zeros, and open it. The slots of server processes follow those of the ranks."""
        size = 8 * (len(_HEADER) + (world_size + servers) * _SLOT)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        board = cls(path)
        board.set_header("world_size", world_size)
        board.set_header("servers", servers)
        for rank in range(world_size + servers):
            board._floats[board._at(rank, "launched")] = time.monotonic()
        return board

    def _at(self, rank: int, field: str) -> int:
        offset = _INTEGERS.index(field) if field in _INTEGERS else len(_INTEGERS) + _FLOATS.index(field)
        return len(_HEADER) + rank * _SLOT + offset

    def header(self, field: str) -> int:
        """One number that concerns all ranks."""
        return self._integers[_HEADER.index(field)]

    def set_header(self, field: str, value: int) -> None:
        """Write one number that concerns all ranks."""
        self._integers[_HEADER.index(field)] = value

    def integer(self, rank: int, field: str) -> int:
        """An integer of a rank's slot."""
        return self._integers[self._at(rank, field)]

    def number(self, rank: int, field: str) -> float:
        """A float of a rank's slot."""
        return self._floats[self._at(rank, field)]

    def phase(self, rank: int) -> str:
        """What a rank is doing."""
        return PHASES[self.integer(rank, "phase")]

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.header("world_size")

    @property
    def processes(self) -> int:
        """The number of slots: ranks, then servers."""
        return self.header("world_size") + self.header("servers")

    # What a rank writes.

    def enter(self, phase: str) -> None:
        """Say what this rank is about to do; any call counts as a sign of life."""
        assert self.rank is not None
        self._integers[self._at(self.rank, "phase")] = PHASES.index(phase)
        self._integers[self._at(self.rank, "beats")] += 1

    def write(self, field: str, value: float) -> None:
        """Write a field of this rank's own slot."""
        assert self.rank is not None
        if field in _INTEGERS:
            self._integers[self._at(self.rank, field)] = int(value)
        else:
            self._floats[self._at(self.rank, field)] = value

    def should_stop(self, step: int, steps_to_meeting: int | None = 1) -> bool:
        """Whether to stop now that ``step`` steps are done; asked by every rank between two steps.

        ``steps_to_meeting`` later every rank has waited for rank 0; None leaves the decision to a server.
        """
        if self.rank == 0 and steps_to_meeting is not None:
            self._stop_after(step + steps_to_meeting)
        return 0 < self.header("stop_after") <= step

    def stop_beyond(self, step: int) -> None:
        """As a server that no rank passes unanswered: stop after ``step + 1``, where that is asked for.

        ``step`` is the last step of the rank that is ahead of all. Called before that rank is answered, so no
        rank can have begun a later step than ``step + 1``, and each sees the number with its next answer.
        """
        self._stop_after(step + 1)

    def _stop_after(self, step: int) -> None:
        if self.header("stop_requested") and not self.header("stop_after"):
            self.set_header("stop_after", step)

    def post_digest(self, step: int, digest: int, turn: int) -> None:
        """Show this rank's fingerprint of the parameters after ``step``; ``turn`` alternates 0 and 1."""
        name = ("even", "odd")[turn % 2]
        self.write(f"{name}_step", 0)  # so that a half-written pair is never compared
        self.write(f"{name}_digest", digest)
        self.write(f"{name}_step", step)

    def differing_ranks(self, turn: int) -> tuple[int, dict[int, int]] | None:
        """(step, digest by rank) where the ranks' fingerprints of that turn are of one step and not equal."""
        name = ("even", "odd")[turn % 2]
        steps = [self.integer(rank, f"{name}_step") for rank in range(self.world_size)]
        digests = {rank: self.integer(rank, f"{name}_digest") for rank in range(self.world_size)}
        if 0 in steps or len(set(steps)) > 1 or len(set(digests.values())) == 1:
            return None
        return steps[0], digests

    def behind(self, step: int, epoch: int) -> int | None:
        """The first rank that has not yet noted this many steps and epochs; None where all have."""
        for rank in range(self.world_size):
            if self.integer(rank, "step") < step or self.integer(rank, "epoch") < epoch:
                return rank
        return None

    def close(self) -> None:
        """Unmap. The views go first: an mmap cannot close while somebody looks at it."""
        for view in (self._integers, self._floats, self._whole):
            view.release()
        self._map.close()

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
