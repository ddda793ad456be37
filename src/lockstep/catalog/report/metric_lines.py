"""A run's step lines over all its ranks and attempts, in the order of steps, without holding them all.

A rank's file is sorted by step, so that any step is found by bisection: a page of a long run reads windows
spread over it, and a page that follows a run reads only what is new. Torn, foreign and hostile lines are
passed over; nothing is raised for what the files hold.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lockstep import files
from lockstep.catalog.report.values import whole
from lockstep.catalog.run import Run

BLOCK_BYTES = 1 << 20
PROBE_BYTES = 1 << 14  # of one look of a bisection: a few dozen usual lines
LONGEST_LINE = 1 << 20  # bytes; digests of many tensors make long lines, this is far above them
MOST_FILES = 4096
END = 1 << 62
_NAME = re.compile(r"rank-(\d{1,6})(?:\.attempt-(\d{1,6}))?\.jsonl")
_STEP = re.compile(rb'"step": ?(\d{1,15})[,}]')
Line = dict[str, Any]
_decoded = json.JSONDecoder().decode


@dataclass(frozen=True)
class Window:
    """Steps from ``first`` up to and with ``last``."""

    first: int
    last: int


@dataclass
class Rank:
    """One rank's files, oldest attempt first, open until ``close``; ``starts`` is where each begins."""

    number: int
    descriptors: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    @property
    def attempts(self) -> int:
        """How many attempts left a file."""
        return len(self.descriptors)

    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(os.fstat(descriptor).st_size for descriptor in self.descriptors)

    def last_step(self) -> int:
        """The newest step with a whole line; 0 where there is none."""
        for descriptor in reversed(self.descriptors):
            size = os.fstat(descriptor).st_size
            for wanted in (BLOCK_BYTES // 4, 4 * BLOCK_BYTES):
                content = os.pread(descriptor, wanted, max(0, size - wanted))
                for text in reversed(content[: content.rfind(b"\n") + 1].split(b"\n")):
                    step = _step_of(text)
                    if step is not None:
                        return step
        return 0

    def lines(self, windows: Sequence[Window]) -> Iterator[Line]:
        """Step and epoch lines inside the windows; a step that a later attempt repeated comes from that one.

        An epoch's line may be written after its last step was read: the one right before a window is sent too.
        """
        for index, descriptor in enumerate(self.descriptors):
            limit = min(self.starts[index + 1 :], default=END)
            reached = 0
            for window in windows:
                if window.first > limit:
                    break
                for line in _from(descriptor, window.first):
                    step = whole(line.get("step")) or 0
                    if step > min(window.last, limit):
                        break
                    if line.get("kind") == "epoch":
                        yield line
                    elif line.get("kind") == "step" and step >= window.first and step > reached:
                        reached = step
                        yield line

    def close(self) -> None:
        """Close the files."""
        while self.descriptors:
            os.close(self.descriptors.pop())


def open_ranks(run: Run) -> list[Rank]:
    """Every rank that has metrics, by number. The caller closes each."""
    found: dict[int, list[tuple[int, Path]]] = {}
    try:
        folder = files.contained(Path("metrics"), run.path)
        names = sorted(os.listdir(folder))[:MOST_FILES]  # noqa: PTH208 - names are all that is needed
    except (OSError, ValueError, RuntimeError):
        return []
    for name in names:
        matched = _NAME.fullmatch(name)
        if matched:
            found.setdefault(int(matched[1]), []).append((int(matched[2] or 1), folder / name))
    ranks = []
    for number in sorted(found):
        rank = Rank(number)
        for _, path in sorted(found[number]):
            descriptor = _opened(path)
            if descriptor is not None:
                rank.descriptors.append(descriptor)
                rank.starts.append(_start(descriptor))
        if rank.descriptors:
            ranks.append(rank)
    return ranks


def merged(ranks: Sequence[Rank], windows: Sequence[Window]) -> Iterator[tuple[int, list[Line | None]]]:
    """Each step with the line of every rank (None where a rank has none). Epoch lines come alone, as step 0."""
    streams = [rank.lines(windows) for rank in ranks]
    heads = [next(stream, None) for stream in streams]
    while True:
        for index, head in enumerate(heads):
            while head is not None and head["kind"] == "epoch":
                yield 0, [head]
                head = next(streams[index], None)  # noqa: PLW2901 - the stream goes on
            heads[index] = head
        steps = [head["step"] for head in heads if head is not None]
        if not steps:
            return
        step = min(steps)
        yield (
            int(step),
            [head if head is not None and head["step"] == step else None for head in heads],
        )
        for index, head in enumerate(heads):
            if head is not None and head["step"] == step:
                heads[index] = next(streams[index], None)


def windows_over(first: int, last: int, share: float, count: int) -> list[Window]:
    """The whole range as one window, or ``count`` windows spread over it that hold a share of its steps."""
    if share >= 1 or last - first < 4 * count:
        return [Window(first, last)]
    edges = [first + (last + 1 - first) * index // count for index in range(count + 1)]
    return [
        Window(start, start + max(1, int((stop - start) * share)) - 1)
        for start, stop in pairwise(edges)
        if stop > start
    ]


def _opened(path: Path) -> int | None:
    """A plain file's descriptor. Links are not followed, and a pipe is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _start(descriptor: int) -> int:
    """The step that a file's attempt starts after, as its first line says."""
    head = os.pread(descriptor, 1 << 16, 0).split(b"\n", 1)[0]
    line = _parsed(head)
    step = whole(line.get("step")) if line else None
    return END if step is None else step - (line is not None and line.get("kind") == "step")


def _from(descriptor: int, step: int) -> Iterator[Line]:
    """The objects of a file's whole lines, from the first that may hold a step."""
    offset, rest, lost = _offset_of(descriptor, step) if step > 1 else 0, b"", False
    wanted = 4 * PROBE_BYTES  # a window is short: little is read first, and more each time
    while block := os.pread(descriptor, wanted, offset):
        offset += len(block)
        wanted = min(BLOCK_BYTES, 2 * wanted)
        *texts, rest = (rest + block).split(b"\n")
        if lost and texts:
            texts, lost = texts[1:], False  # the end of a line that was too long
        for text in texts:
            line = _parsed(text)
            if line is not None:
                yield line
        if len(rest) > LONGEST_LINE:
            rest, lost = b"", True


def _offset_of(descriptor: int, step: int) -> int:
    """Where a line begins, at or before the first line of a step; bisection over a file sorted by step."""
    low, high = 0, os.fstat(descriptor).st_size
    while high - low > PROBE_BYTES:
        middle = (low + high) // 2
        content = os.pread(descriptor, PROBE_BYTES, middle)
        begin = content.find(b"\n") + 1
        found = _STEP.search(content, begin) if begin else None
        if found is None or int(found[1]) >= step:
            high = middle
        else:
            low = middle + begin
    return low


def _step_of(text: bytes) -> int | None:
    line = _parsed(text) if text.startswith(b'{"kind": "step"') else None
    return whole(line.get("step")) if line else None


def _parsed(text: bytes) -> Line | None:
    """A line's object with a usable step; else None."""
    try:
        line = _decoded(text.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    step = line.get("step")
    return line if type(step) is int and 0 <= step < END >> 10 else None
