"""Loss and accuracy per epoch: two charts, and every figure behind them."""

from typing import Any

from lockstep.catalog.report.curves import Chart, Series, curves, sampled
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import section, table
from lockstep.catalog.report.values import (
    at,
    number,
    objects,
    show_count,
    show_decimal,
    show_percent,
    show_seconds,
    whole,
)

MOST_EPOCHS = 10_000
MOST_ROWS = 200  # of the table
SPLITS = ("train", "validation")
COLUMNS = (
    *("epoch", "step", "took", "learning rate"),
    *("train loss", "train accuracy", "validation loss", "validation accuracy"),
)
Epochs = list[tuple[int, dict[str, Any]]]


def learning(record: Record) -> Html:
    """The section of the page."""
    epochs = _epochs(record)
    if not epochs:
        return section("learning", "Learning", "No epoch was recorded.")
    best = whole(at(record.results, "evaluation", "best", "epoch"))
    marked = None if best is None or len(epochs) == 1 else (best, "best on validation")
    numbers = [number_ for number_, _ in epochs]
    loss = Chart("Loss", numbers, _series(epochs, "loss"), show_decimal, "{:g}".format, marked=marked)
    accuracy = Chart(
        "Accuracy", numbers, _series(epochs, "accuracy"), show_percent, _percent_tick, top=1.0, marked=marked
    )
    charts = el("div", curves(loss), curves(accuracy), class_="pair")
    return section("learning", "Learning", _learned(epochs), charts, _table(epochs))


def _percent_tick(tick: float) -> str:
    return f"{tick * 100:g}%"


def _epochs(record: Record) -> Epochs:
    """Epochs in order, by their own number where they have one; of two with the same number the last."""
    numbered = {}
    for index, epoch in enumerate(objects(record.results.get("epochs"))[:MOST_EPOCHS], start=1):
        own = whole(epoch.get("epoch"))
        numbered[index if own is None or own > 10**9 else own] = epoch
    return sorted(numbered.items(), key=lambda pair: pair[0])


def _series(epochs: Epochs, key: str) -> list[Series]:
    every = [Series(split, split, [number(at(epoch, split, key)) for _, epoch in epochs]) for split in SPLITS]
    return [series for series in every if any(value is not None for value in series.values)]


def _learned(epochs: Epochs) -> str:
    first, last = epochs[0][1], epochs[-1][1]
    split = "validation" if number(at(last, "validation", "loss")) is not None else "train"
    start, end = show_decimal(at(first, split, "loss")), show_decimal(at(last, split, "loss"))
    if len(epochs) == 1:
        return f"One epoch: loss {end} on the {split} split."
    return f"In {len(epochs):,} epochs the loss on the {split} split went from {start} to {end}."


def _table(epochs: Epochs) -> Html:
    rows = []
    for number_, epoch in (epochs[index] for index in sampled(len(epochs), MOST_ROWS)):
        took, rate = show_seconds(epoch.get("seconds")), show_decimal(epoch.get("learning_rate"))
        figures = [
            show(at(epoch, split, key))
            for split in SPLITS
            for key, show in (("loss", show_decimal), ("accuracy", show_percent))
        ]
        rows.append([str(number_), show_count(epoch.get("step")), took, rate, *figures])
    every = "" if len(epochs) <= MOST_ROWS else f" ({MOST_ROWS} of {len(epochs):,})"
    return el(
        "details", el("summary", f"Figures of every epoch{every}"), table("Figures per epoch", COLUMNS, rows)
    )
