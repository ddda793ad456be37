"""Rows of runs as a table of text."""

from collections.abc import Sequence
from typing import Any

from lockstep.catalog.report.values import show_count, show_decimal, show_percent, show_seconds
from lockstep.catalog.text import Table, cell, show_age, show_value

HEADINGS = (
    "run",
    "status",
    "tag",
    "strategy",
    "ranks",
    "data",
    "model",
    "accuracy",
    "loss",
    "test_accuracy",
    "test_loss",
    "samples/s",
    "duration",
    "age",
)
NUMERIC = frozenset(map(HEADINGS.index, ("ranks", *HEADINGS[HEADINGS.index("accuracy") :])))
# A run is chosen by its id, its status and how it did on validation: those stay on any terminal.
DROPPABLE = (
    *(
        "test_loss",
        "test_accuracy",
        "data",
        "duration",
        "samples/s",
        "ranks",
        "model",
        "tag",
        "age",
        "strategy",
    ),
)


def table(
    rows: Sequence[dict[str, Any]], parameters: Sequence[str] = (), wanted: Sequence[str] = ()
) -> Table:
    """The rows as text, with a column for each of the parameters that the list was filtered or sorted by.

    ``wanted`` are the columns that were asked for by name: they are left out after all others.
    """
    order = sorted(DROPPABLE, key=lambda name: name in wanted)  # stable
    return Table(
        [(*_cells(row), *(show_value(row["parameters"][name]) for name in parameters)) for row in rows],
        (*HEADINGS, *(cell(name) for name in parameters)),
        NUMERIC,
        [HEADINGS.index(name) for name in order],
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        cell(row["run_id"], 64),
        cell(row["status"]) + (f": {cell(row['cause'], 24)}" if row["cause"] else ""),
        cell(row["tag"], 24),
        cell(row["strategy"], 16),
        show_count(row["world_size"]),
        cell(row["dataset"], 16),
        cell(row["model"], 16),
        show_percent(row["accuracy"]),
        show_decimal(row["loss"]),
        show_percent(row["test_accuracy"]),
        show_decimal(row["test_loss"]),
        show_count(row["samples_per_second"]),
        show_seconds(row["seconds"]),
        show_age(row["age_seconds"]),
    )
