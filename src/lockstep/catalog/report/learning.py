"""Loss, accuracy and what each step measured: charts of one run or of several, and every figure behind them."""

from collections.abc import Sequence

from lockstep.catalog.report.charts import SPLITS, Chart, Epochs, charts_of, coinciding, epochs_of
from lockstep.catalog.report.curves import figure, kind_of, sampled, swatch
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.steps import Steps
from lockstep.catalog.report.tables import section, table
from lockstep.catalog.report.values import (
    at,
    counted,
    number,
    show_count,
    show_decimal,
    show_percent,
    show_seconds,
)

MOST_ROWS = 200  # of a table
EPOCH_COLUMNS = (
    *("epoch", "step", "took", "learning rate"),
    *("train loss", "train accuracy", "validation loss", "validation accuracy"),
)
STEP_COLUMNS = ("steps", "loss", "learning rate", "gradient norm", "samples/s", "waiting")
WORDS = {"train": "train, mean of an epoch", "validation": "validation", "steps": "every step"}


def learning(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The section of the page. ``names`` are the runs', where there are several."""
    epochs = [epochs_of(record) for record in records]
    charts = charts_of(records)
    if not any(epochs) and not any(chart.lines for chart in charts):
        return section("learning", "Learning", "No epoch was recorded.")
    tables = [
        _tables(record, found, name if len(records) > 1 else "")
        for record, found, name in zip(records, epochs, names, strict=True)
    ]
    lead = _learned(epochs[0]) if len(records) == 1 else _compared(epochs, names)
    for group in coinciding(charts):
        alike = ", ".join(names[run] for run in group[:6]) + (" and others" if len(group) > 6 else "")
        lead += f" One below the other, too near to be told apart, and drawn in other widths: {alike}."
    return section(
        "learning",
        "Learning",
        lead,
        _controls(charts, names),
        el("div", [figure(chart, names) for chart in charts], class_="pair charts"),
        tables[0] if len(records) == 1 else el("details", el("summary", "Figures of every run"), tables),
    )


def legend_of_runs(names: Sequence[str]) -> Html:
    """The runs with their colours; with script, a press hides one or shows it again."""
    entries = [
        el("li", swatch(f"train k-run{index % 8}"), name, data_run=index) for index, name in enumerate(names)
    ]
    return el("ul", entries, class_="legend runs")


def _controls(charts: Sequence[Chart], names: Sequence[str]) -> Html:
    """Legends that the script turns into switches, and its other controls, hidden until it runs."""
    alone = len(names) == 1
    present = {line.split: line for chart in charts for line in chart.lines}
    splits = [
        el(
            "li",
            swatch(kind_of(present[split], True) if alone else f"{split} k-ink"),
            words,
            data_split=split,
        )
        for split, words in WORDS.items()
        if split in present
    ]
    return el(
        "div",
        None if alone else legend_of_runs(names),
        el("ul", splits, class_="legend splits-of-lines"),
        el("div", class_="tools", id="tools", hidden=True),
        class_="controls",
    )


def _learned(epochs: Epochs) -> str:
    if not epochs:
        return "No epoch was finished; what each step measured is below."
    first, last = epochs[0][2], epochs[-1][2]
    split = "validation" if number(at(last, "validation", "loss")) is not None else "train"
    start, end = show_decimal(at(first, split, "loss")), show_decimal(at(last, split, "loss"))
    if len(epochs) == 1:
        return f"One epoch: loss {end} on the {split} split."
    return f"In {len(epochs):,} epochs the loss on the {split} split went from {start} to {end}."


def _compared(epochs: Sequence[Epochs], names: Sequence[str]) -> str:
    losses = [
        (loss, name)
        for found, name in zip(epochs, names, strict=True)
        if found and (loss := number(at(found[-1][2], "validation", "loss"))) is not None
    ]
    if len(losses) < 2:
        return "Lines of one colour belong to one run."
    best, name = min(losses)
    return f"The lowest validation loss at the end is {show_decimal(best)}, of {name}."


def _tables(record: Record, epochs: Epochs, name: str) -> list[Html]:
    of = f" of {name}" if name else ""
    parts = []
    if epochs:
        parts.append(
            _folded_away(
                f"Figures of every epoch{of}",
                len(epochs),
                table("Figures per epoch" + of, EPOCH_COLUMNS, _epochs(epochs)),
            )
        )
    if len(record.steps):
        steps = table("Figures per step" + of, STEP_COLUMNS, _steps(record.steps))
        parts.append(_folded_away(f"Figures of steps{of}", len(record.steps), steps))
    return parts


def _folded_away(title: str, count: int, content: Html) -> Html:
    every = "" if count <= MOST_ROWS else f" ({MOST_ROWS} of {counted(count, 'row')})"
    return el("details", el("summary", title + every), content)


def _epochs(epochs: Epochs) -> list[list[str]]:
    rows = []
    for number_, step, epoch in (epochs[index] for index in sampled(len(epochs), MOST_ROWS)):
        took, rate = show_seconds(epoch.get("seconds")), show_decimal(epoch.get("learning_rate"))
        figures = [
            show(at(epoch, split, key))
            for split in SPLITS
            for key, show in (("loss", show_decimal), ("accuracy", show_percent))
        ]
        rows.append([str(number_), show_count(step), took, rate, *figures])
    return rows


def _steps(steps: Steps) -> list[list[str]]:
    shows = (
        ("loss", show_decimal),
        ("learning_rate", show_decimal),
        ("grad_norm", show_decimal),
        ("samples_per_second", show_count),
        ("waiting", show_percent),
    )
    rows = []
    for index in sampled(len(steps), MOST_ROWS):
        first, last = steps.first[index], steps.last[index]
        name = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        rows.append([name, *(show(steps.curves[key].mean[index]) for key, show in shows)])
    return rows
