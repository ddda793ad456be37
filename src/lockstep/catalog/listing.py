"""The runs of a catalog, a row each, from whatever their folders hold."""

import json
import time
from pathlib import Path
from typing import Any

from lockstep.catalog import events, status
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.values import (
    at,
    moment,
    number,
    show_count,
    show_decimal,
    show_percent,
    show_seconds,
    whole,
)
from lockstep.catalog.run import Run, all_runs
from lockstep.catalog.text import Table, cell, show_age

LARGEST_FILE_BYTES = 64 << 20
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


def rows(catalog: Path) -> list[dict[str, Any]]:
    """A row for every run, newest first. Damaged records leave gaps (None), and never an error."""
    now = time.time()
    return [row(run, now) for run in all_runs(catalog)]


def row(run: Run, now: float) -> dict[str, Any]:
    """What a list says of one run. Accuracy and loss are the final model's on the test split."""
    history = events.read(run)
    state = status.of(run)
    created: dict[str, Any] = next((event for event in history if event["event"] == "created"), {})
    told = told_by(history)
    results = read_object(run.results)
    test = at(results, "evaluation", "final", "test")
    return {
        "run_id": run.run_id,
        "path": str(run.path),
        "status": state.word,
        "cause": state.cause,
        "tag": _text(created.get("tag")),
        "strategy": _text(at(created, "summary", "strategy")),
        "world_size": whole(at(created, "summary", "world_size")),
        "dataset": _text(at(created, "summary", "dataset")),
        "model": _text(at(created, "summary", "model")),
        "accuracy": number(at(test, "accuracy")),
        "loss": number(at(test, "loss")),
        "samples_per_second": number(at(results, "training", "samples_per_second")),
        "seconds": duration(told.seconds, state, now),
        "created": _text(created.get("time")),
        "age_seconds": None if told.created is None else max(0.0, now - told.created),
    }


def duration(seconds: float | None, state: status.Status, now: float) -> float | None:
    """Time spent in all attempts; while the run is going on, up to now."""
    started = moment(state.started)
    return max(seconds or 0.0, now - started) if state.word == "running" and started else seconds


def table(found: list[dict[str, Any]]) -> Table:
    """The rows as text."""
    return Table(
        [
            (
                cell(each["run_id"], 64),
                cell(each["status"]) + (f": {cell(each['cause'], 24)}" if each["cause"] else ""),
                cell(each["tag"], 24),
                cell(each["strategy"], 16),
                show_count(each["world_size"]),
                cell(each["dataset"], 16),
                cell(each["model"], 16),
                show_percent(each["accuracy"]),
                show_decimal(each["loss"]),
                show_count(each["samples_per_second"]),
                show_seconds(each["seconds"]),
                show_age(each["age_seconds"]),
            )
            for each in found
        ],
        HEADINGS,
        frozenset({4, 7, 8, 9, 10, 11}),
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a plain file; empty where it is missing, torn, too large or anything else."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
