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
    "samples/s",
    "duration",
    "age",
)


def table(rows: Sequence[dict[str, Any]], parameters: Sequence[str] = ()) -> Table:
    """The rows as text, with a column for each of the parameters that the list was filtered or sorted by."""
    return Table(
        [(*_cells(row), *(show_value(row["parameters"][name]) for name in parameters)) for row in rows],
        (*HEADINGS, *(cell(name) for name in parameters)),
        frozenset({4, 7, 8, 9, 10, 11}),
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
        show_count(row["samples_per_second"]),
        show_seconds(row["seconds"]),
        show_age(row["age_seconds"]),
    )
