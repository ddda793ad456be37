"""Which curves a page shows, of one run or of several: what is drawn, by which name, from which figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lockstep.catalog.report.read import Record
from lockstep.catalog.report.steps import Steps
from lockstep.catalog.report.values import (
    at,
    number,
    objects,
    show_count,
    show_decimal,
    show_percent,
    whole,
)

MOST_EPOCHS = 10_000
INDISTINCT = 250  # parts of an axis: lines that are nearer to each other cannot be told apart
MOST_UNDER = 3
SPLITS = ("train", "validation")
Epochs = list[tuple[int, int, dict[str, object]]]  # number, step at its end, figures


@dataclass(frozen=True)
class Line:
    """One line of a chart. ``split`` is train, validation or steps; low and high are a bucket's extremes."""

    run: int
    split: str
    steps: Sequence[int]
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    under: int = 0  # how many later runs' lines lie on this one, which is drawn wider for it

    @property
    def last(self) -> float | None:
        """The newest value."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(frozen=True)
class Chart:
    """All that a figure needs; ``form`` is how the script writes its values: decimal, percent or count."""

    key: str
    title: str
    form: str
    lines: Sequence[Line]
    top: float | None = None
    marked: tuple[int, str] | None = None

    @property
    def show(self) -> Callable[[object], str]:
        """A value in words."""
        return {"decimal": show_decimal, "percent": show_percent, "count": show_count}[self.form]

    def show_tick(self, tick: float) -> str:
        """A mark of the axis in words."""
        if self.form == "percent":
            return f"{tick * 100:g}%"
        return f"{tick:,.0f}" if self.form == "count" and abs(tick) >= 1 else f"{tick:g}"


def epochs_of(record: Record) -> Epochs:
    """Epochs in order, by their own number where they have one; of two with the same number the last.

    From the results; where the run never came so far, from what its ranks wrote.
    """
    found = objects(record.results.get("epochs")) or record.steps.epochs
    numbered: dict[int, dict[str, object]] = {}
    for index, epoch in enumerate(found[:MOST_EPOCHS], start=1):
        own = whole(epoch.get("epoch"))
        numbered[index if own is None or own > 10**9 else own] = epoch
    epochs: Epochs = []
    for number_, epoch in sorted(numbered.items()):
        step = whole(epoch.get("step"))
        after = epochs[-1][1] if epochs else 0
        epochs.append((number_, step if step is not None and step > after else after + 1, epoch))
    return epochs


def charts_of(records: Sequence[Record]) -> list[Chart]:
    """The charts of a page, each with the lines of every run that measured such a thing."""
    epochs = [epochs_of(record) for record in records]
    alone = len(records) == 1
    marked = _best(records[0], epochs[0]) if alone else None
    learning = [
        Chart("loss", "Loss", "decimal", _lines(records, epochs, "loss"), marked=marked),
        Chart("accuracy", "Accuracy", "percent", _lines(records, epochs, "accuracy"), 1.0, marked),
    ]
    rest = [
        Chart("grad_norm", "Gradient norm", "decimal", _of_steps(records, "grad_norm")),
        Chart("learning_rate", "Learning rate", "decimal", _of_steps(records, "learning_rate")),
        Chart("samples_per_second", "Samples/s", "count", _of_steps(records, "samples_per_second")),
        Chart("waiting", "Waiting, share of a step", "percent", _of_steps(records, "waiting"), 1.0),
    ]
    return [_told_apart(chart) for chart in (*learning, *(chart for chart in rest if chart.lines))]


def _told_apart(chart: Chart) -> Chart:
    """The chart with its lines marked on which others lie: as good as one, to the eye."""
    values = [value for line in chart.lines for value in line.values if value is not None]
    near = (max(values) - min(values)) / INDISTINCT if values else 0.0
    lines = [
        replace(
            line,
            under=min(MOST_UNDER, sum(_coincide(line, later, near) for later in chart.lines[index + 1 :])),
        )
        for index, line in enumerate(chart.lines)
    ]
    return replace(chart, lines=lines)


def _coincide(one: Line, other: Line, near: float) -> bool:
    if one.run == other.run or one.split != other.split or [*one.steps] != [*other.steps]:
        return False
    return all(
        a is b or (a is not None and b is not None and abs(a - b) <= near)
        for a, b in zip(one.values, other.values, strict=True)
    )


def coinciding(charts: Sequence[Chart]) -> list[list[int]]:
    """Runs whose losses lie on each other, in groups."""
    groups: list[list[int]] = []
    lines = [line for chart in charts if chart.key == "loss" for line in chart.lines]
    values = [value for line in lines for value in line.values if value is not None]
    near = (max(values) - min(values)) / INDISTINCT if values else 0.0
    by_run: dict[int, list[Line]] = {}
    for line in lines:
        by_run.setdefault(line.run, []).append(line)
    for run, own in by_run.items():
        for group in groups:
            theirs = by_run[group[0]]
            if len(own) == len(theirs) and all(map(_coincide, own, theirs, [near] * len(own))):
                group.append(run)
                break
        else:
            groups.append([run])
    return [group for group in groups if len(group) > 1]


def _best(record: Record, epochs: Epochs) -> tuple[int, str] | None:
    best = whole(at(record.results, "evaluation", "best", "epoch"))
    step = next((step for number_, step, _ in epochs if number_ == best), None)
    return None if step is None or len(epochs) == 1 else (step, "best on validation")


def _lines(records: Sequence[Record], epochs: Sequence[Epochs], key: str) -> list[Line]:
    lines = _of_steps(records, key)
    for run, found in enumerate(epochs):
        steps = [step for _, step, _ in found]
        for split in SPLITS:
            values = [number(at(epoch, split, key)) for _, _, epoch in found]
            if any(value is not None for value in values):
                lines.append(Line(run, split, steps, values))
    return lines


def _of_steps(records: Sequence[Record], key: str) -> list[Line]:
    lines = []
    for run, record in enumerate(records):
        curve = record.steps.curves.get(key)
        if curve is not None and any(value is not None for value in curve.mean):
            lines.append(Line(run, "steps", middles(record.steps), curve.mean, curve.low, curve.high))
    return lines


def middles(steps: Steps) -> list[int]:
    """Where each bucket is drawn: its middle step."""
    return [(first + last) // 2 for first, last in zip(steps.first, steps.last, strict=True)]
