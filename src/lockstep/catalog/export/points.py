"""Metrics of a run as points: name, value, step, and a time in milliseconds, as tracking servers want them.

The record has no clock time per step. A step's time is when its attempt began to train plus the seconds of the
slowest rank of every step since; so exporting twice gives the same times.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lockstep.catalog.export.material import Material
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.metric_lines import Line, Rank, Window, merged, open_ranks
from lockstep.catalog.report.values import at, mapping, number, whole

MOST_STEPS = 20_000  # of a longer run every k-th step is taken
SPLITS = ("train", "validation")
FIGURES = ("loss", "accuracy")


@dataclass(frozen=True)
class Point:
    """One value. ``milliseconds`` since 1970."""

    name: str
    value: float
    step: int
    milliseconds: int


@dataclass
class _Sum:
    total: float = 0.0
    samples: float = 0.0


def points(material: Material) -> Iterator[Point]:
    """Every step's loss, learning rate, gradient norm and speed; every epoch's losses and accuracies; the test's."""
    ranks = open_ranks(material.run)
    try:
        last = max((rank.last_step() for rank in ranks), default=0)
        clock = _Clock(material, ranks)
        epochs: dict[int, dict[str, _Sum]] = {}
        times: dict[int, int] = {}
        every = max(1, -(-last // MOST_STEPS))
        for step, lines in merged(ranks, [Window(0, last)]):
            if step == 0:
                _note_epoch(epochs, lines[0] or {})
                continue
            found = [line for line in lines if line is not None]
            time = clock.after(step, found)
            times[step] = time
            if step % every == 0 or step == last:
                yield from _of_step(step, found, time)
        yield from _of_epochs(epochs, times)
    finally:
        for rank in ranks:
            rank.close()
    yield from _of_tests(material)


class _Clock:
    """When each step ended, in milliseconds since 1970."""

    def __init__(self, material: Material, ranks: list[Rank]) -> None:
        begins = [
            step.started
            for attempt in told_by(material.history).attempts
            for step in attempt.steps
            if step.name == "train" and step.started is not None
        ]
        starts = ranks[0].starts if ranks else []
        self._begins = dict(zip(starts, begins, strict=False))
        self._now = begins[0] if begins else material.began or 0.0
        self._last = 0

    def after(self, step: int, lines: list[Line]) -> int:
        """The time after a step; a later attempt begins at its own time."""
        for start in [start for start in self._begins if start < step]:
            self._now = max(self._now, self._begins.pop(start))
        self._now += max((number(line.get("step_seconds")) or 0.0 for line in lines), default=0.0)
        return int(self._now * 1000)


def _of_step(step: int, lines: list[Line], time: int) -> Iterator[Point]:
    samples = sum(number(line.get("samples")) or 0.0 for line in lines)
    losses = [(number(line.get("loss")), number(line.get("samples")) or 0.0) for line in lines]
    weighted = [loss * count for loss, count in losses if loss is not None]
    slowest = max((number(line.get("step_seconds")) or 0.0 for line in lines), default=0.0)
    values = {
        "loss": sum(weighted) / samples if samples and weighted else None,
        "learning_rate": next((number(line.get("learning_rate")) for line in lines), None),
        "grad_norm": next((number(line.get("grad_norm")) for line in lines), None),
        "samples_per_second": samples / slowest if slowest > 0 else None,
    }
    for name, value in values.items():
        if number(value) is not None and value is not None:
            yield Point(name, value, step, time)


def _note_epoch(epochs: dict[int, dict[str, _Sum]], line: Line) -> None:
    """Add one rank's share of an epoch, by its samples."""
    sums = epochs.setdefault(whole(line.get("step")) or 0, {})
    for split in SPLITS:
        share: dict[str, Any] = mapping(line.get(split))
        samples = number(share.get("samples")) or 0.0
        for figure in FIGURES:
            value = number(share.get(figure))
            if value is not None and samples > 0:
                each = sums.setdefault(f"{split}.{figure}", _Sum())
                each.total += value * samples
                each.samples += samples


def _of_epochs(epochs: dict[int, dict[str, _Sum]], times: dict[int, int]) -> Iterator[Point]:
    for step, sums in sorted(epochs.items()):
        for name, each in sums.items():
            if step in times:
                yield Point(name, each.total / each.samples, step, times[step])


def _of_tests(material: Material) -> Iterator[Point]:
    """Test figures of the final and the best model, at their steps."""
    time = int((material.ended or material.began or 0.0) * 1000)
    for which, prefix in (("final", "test"), ("best", "best.test")):
        found = mapping(at(material.results, "evaluation", which))
        step = whole(found.get("step")) or 0
        for figure in FIGURES:
            value = number(at(found, "test", figure))
            if value is not None:
                yield Point(f"{prefix}.{figure}", value, step, time)
