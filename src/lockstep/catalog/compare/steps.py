"""What a run computed step by step, as its metrics tell: over all its attempts, and its parent's steps before.

Fingerprints are held as short digests, with the place of their line: a run may have millions of them, and the
tensors' names are wanted for one step only.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run, is_name
from lockstep.files import open_plain, read_object
from lockstep.strict_json import real

LARGEST_FILE_BYTES = 1 << 30
LONGEST_LINE_BYTES = 16 << 20
MOST_RANKS = 4096
MOST_ANCESTORS = 100
SCALARS = ("loss", "correct", "grad_norm", "learning_rate")
PRINTS = ("gradient_digests", "own_gradient_digests", "parameter_digests")
_NAME = re.compile(r"rank-(\d{1,6})(?:\.attempt-(\d{1,6}))?\.jsonl")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line stands, so that it can be read again."""

    path: Path
    offset: int
    length: int

    def read(self) -> dict[str, Any]:
        """The line's object; empty where it has changed since."""
        try:
            with open_plain(self.path, 2) as file:
                file.seek(self.offset)
                return _object(file.read(self.length))
        except OSError:
            return {}


@dataclass(frozen=True, slots=True)
class Line:
    """One rank's step. ``prints`` holds a digest of each set of fingerprints that the line has."""

    samples: int
    scalars: dict[str, float]
    batch: int | None
    prints: dict[str, bytes]
    place: Place


@dataclass
class Steps:
    """All ranks of a run. Steps count from 1; ``states`` are the weights' fingerprints after so many steps."""

    run: Run
    lines: dict[int, dict[int, Line]] = field(default_factory=dict)
    states: dict[int, dict[int, tuple[bytes, Place]]] = field(default_factory=dict)
    epochs: dict[int, dict[int, dict[str, Any]]] = field(default_factory=dict)  # by their last step
    repeats: list[tuple[int, int, bool]] = field(default_factory=list)  # step, rank, whether the same bits
    notes: list[str] = field(default_factory=list)
    first_own_step: int = 1  # steps before it are an ancestor's
    exact: bool | None = None  # as the strategy said of itself when it began; None in older records

    @property
    def last(self) -> int:
        """The last step that any rank has told of; 0 where there is none."""
        return max(self.lines, default=0)

    @property
    def reduces(self) -> bool:
        """Whether gradients, and with them their norm, are those of all ranks together."""
        return any("gradient_digests" in line.prints for line in self._some_ranks())

    def rates(self) -> set[float]:
        """Every learning rate that a step was made with."""
        lines = (line for ranks in self.lines.values() for line in ranks.values())
        return {line.scalars["learning_rate"] for line in lines if "learning_rate" in line.scalars}

    def rates_where_it_goes_on(self) -> tuple[float, float] | None:
        """The rates of an ancestor's last step and of the first own; None where none, or one, is known."""
        found = [self.lines.get(step, {}) for step in (self.first_own_step - 1, self.first_own_step)]
        rates = [next(iter(ranks.values())).scalars.get("learning_rate") for ranks in found if ranks]
        before, after = rates if len(rates) == 2 else (None, None)
        return None if before is None or after is None else (before, after)

    def _some_ranks(self) -> Iterator[Line]:
        return (line for ranks in self.lines.values() for line in ranks.values() if line.prints)


def read(run: Run, ancestors: int = MOST_ANCESTORS) -> Steps:
    """Read a run's metrics; whatever is missing or damaged leaves gaps."""
    found = Steps(run)
    starts = [_read_rank(found, rank, files) for rank, files in sorted(_files(run).items())]
    start = min(starts, default=0)
    if start > 0:
        found.first_own_step = start + 1
        _put_parent_before(found, start, ancestors)
    return found


def _put_parent_before(found: Steps, start: int, ancestors: int) -> None:
    """The steps up to ``start`` were an ancestor's: take them from its folder, where that stands beside."""
    created = next((event for event in events.read(found.run) if event["event"] == "created"), {})
    name = mapping(created.get("parent")).get("run_id")
    if not isinstance(name, str) or not is_name(name):
        found.notes.append(f"steps 1 to {start} of {found.run.shown} are not told of in its folder")
        return
    parent = Run(found.run.catalog / name)
    if not ancestors or parent.path == found.run.path or not parent.events.is_file():
        found.notes.append(f"steps 1 to {start} are those of {name}, which is not in {found.run.catalog}")
        return
    plans = [read_object(run.plan).get("steps_per_epoch") for run in (found.run, parent)]
    if plans[0] != plans[1]:
        found.notes.append(f"steps before {start + 1} are those of {name}, whose epochs have other steps")
        return
    before = read(parent, ancestors - 1)
    found.notes += before.notes
    tables: tuple[tuple[dict[int, Any], dict[int, Any]], ...] = (
        (found.lines, before.lines),
        (found.states, before.states),
        (found.epochs, before.epochs),
    )
    for own, theirs in tables:
        own |= {step: ranks for step, ranks in theirs.items() if step <= start and step not in own}


def _files(run: Run) -> dict[int, list[Path]]:
    """By rank, its files in the order of the attempts."""
    found: dict[int, dict[int, Path]] = {}
    try:
        paths = [] if run.metrics.is_symlink() else list(run.metrics.iterdir())
    except OSError:
        paths = []
    for path in paths:
        name = _NAME.fullmatch(path.name)
        if name and int(name[1]) < MOST_RANKS:
            found.setdefault(int(name[1]), {})[int(name[2] or 1)] = path
    return {rank: [files[number] for number in sorted(files)] for rank, files in found.items()}


@dataclass
class _Rank:
    """One rank's attempts, as far as they are read.

    A start goes on from a checkpoint: what was done beyond it before is undone, and is either done again (with
    the same bits, or the run does not repeat itself) or no part of what the run became.
    """

    first: int | None = None
    lines: dict[int, Line] = field(default_factory=dict)
    undone: dict[int, Line] = field(default_factory=dict)
    states: dict[int, tuple[bytes, Place]] = field(default_factory=dict)
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)
    repeats: list[tuple[int, bool]] = field(default_factory=list)
    exact: bool | None = None

    def take(self, step: int, place: Place, value: dict[str, Any]) -> None:
        """The next line."""
        match value.get("kind"):
            case "step":
                self.lines[step] = line = _line(place, value)
                if step in self.undone:
                    self.repeats.append((step, _same(self.undone.pop(step), line)))
                if "parameter_digests" in line.prints:
                    self.states[step] = line.prints["parameter_digests"], place
            case "epoch":
                self.epochs[step] = {name: mapping(value.get(name)) for name in ("train", "validation")}
            case "start":
                self._start(step, place, value)

    def _start(self, step: int, place: Place, value: dict[str, Any]) -> None:
        self.first = step if self.first is None else self.first
        if isinstance(exact := value.get("exact"), bool):
            self.exact = exact and self.exact is not False
        self.undone |= {later: self.lines.pop(later) for later in [key for key in self.lines if key > step]}
        tables: tuple[dict[int, Any], ...] = (self.states, self.epochs)
        for table in tables:
            for later in [key for key in table if key > step]:
                del table[later]
        prints = _digest(value.get("parameter_digests"))
        if prints is not None:
            self.states.setdefault(step, (prints, place))


def _read_rank(found: Steps, rank: int, files: list[Path]) -> int:
    """Take one rank's attempts in; returns the step that the first goes on from."""
    own = _Rank()
    for place, value in (pair for path in files for pair in _lines(path, found.notes)):
        step = value.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 53:
            own.take(step, place, value)
    tables: tuple[tuple[dict[int, Any], dict[int, Any]], ...] = (
        (found.lines, own.lines),
        (found.states, own.states),
        (found.epochs, own.epochs),
    )
    for whole, part in tables:
        for step, entry in part.items():
            whole.setdefault(step, {})[rank] = entry
    found.repeats += [(step, rank, same) for step, same in own.repeats]
    if own.exact is not None:
        found.exact = own.exact and found.exact is not False
    return own.first or 0


def _line(place: Place, value: dict[str, Any]) -> Line:
    samples, batch = value.get("samples"), value.get("batch_digest")
    return Line(
        samples=samples if isinstance(samples, int) and 0 <= samples < 1 << 53 else 0,
        scalars={name: found for name in SCALARS if (found := real(value.get(name))) is not None},
        batch=batch if isinstance(batch, int) else None,
        prints={name: prints for name in PRINTS if (prints := _digest(value.get(name))) is not None},
        place=place,
    )


def _same(before: Line, after: Line) -> bool:
    return before.scalars == after.scalars and before.prints == after.prints and before.batch == after.batch


def _lines(path: Path, notes: list[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        with open_plain(path, 2) as file:
            offset = 0
            while line := file.readline(LONGEST_LINE_BYTES):
                yield Place(path, offset, len(line)), _object(line)
                offset += len(line)
                if offset > LARGEST_FILE_BYTES:
                    notes.append(
                        f"{path.name} has more than {LARGEST_FILE_BYTES >> 30} GiB: only that was read"
                    )
                    return
    except OSError:
        return


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(prints: object) -> bytes | None:
    """One short digest of fingerprints by name; None for anything else."""
    if not isinstance(prints, dict) or not all(isinstance(value, int) for value in prints.values()):
        return None
    text = json.dumps(prints, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).digest()
