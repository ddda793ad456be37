"""The steps of the pipeline as a table with a bar each, on one axis of time per attempt."""

import time
from typing import Any

from lockstep.catalog.report.values import number, show_seconds
from lockstep.catalog.text import Table, cell

WIDTH = 24
MOST_STEPS = 50
DONE, OPEN, SHORTEST = "█", "▒", "▏"


def table(found: dict[str, Any]) -> Table:
    """The steps of an overview (show.py): when each began within its attempt, how long it took, and a bar.

    A step without an end is drawn to the last thing that its attempt wrote, or to now while it runs.
    """
    several = len(found["attempts"]) > 1
    axes = {each["attempt"]: _axis(each, found) for each in found["attempts"]}
    rows = []
    for step in found["steps"][-MOST_STEPS:]:
        begin, end = axes[step["attempt"]]
        started = begin if step["started"] is None else step["started"]
        open_seconds = max(0.0, end - started) if step["status"] == "running" else None
        seconds = number(step["seconds"])
        length = max(0.0, end - started) if seconds is None else seconds
        rows.append(
            (
                *([str(step["attempt"])] if several else []),
                cell(step["step"]),
                cell(step["status"]),
                show_seconds(max(0.0, started - begin)),
                show_seconds(open_seconds if seconds is None else seconds),
                bar(started - begin, length, end - begin, DONE if seconds is not None else OPEN),
            )
        )
    headings = (*(["attempt"] if several else []), "step", "status", "began after", "time", "")
    last = len(headings) - 1
    return Table(rows, headings, frozenset({last - 2, last - 1}), (last, last - 2))


def bar(begin: float, length: float, span: float, sign: str) -> str:
    """A bar of ``length`` seconds that begins ``begin`` seconds into an axis of ``span`` seconds."""
    scale = WIDTH / span if span > 0 else 0.0
    offset = min(WIDTH - 1, max(0, round(begin * scale)))
    cells = min(WIDTH - offset, round(length * scale))
    return " " * offset + (sign * cells if cells > 0 else SHORTEST)


def _axis(attempt: dict[str, Any], found: dict[str, Any]) -> tuple[float, float]:
    """When an attempt began and ended, in seconds since 1970; one that runs ends now."""
    steps = [step for step in found["steps"] if step["attempt"] == attempt["attempt"]]
    begins = [step["started"] for step in steps if step["started"] is not None]
    begin = min([*begins, *([] if attempt["started"] is None else [attempt["started"]])], default=0.0)
    running = found["status"] == "running" and attempt is found["attempts"][-1]
    ends = [
        step["started"] + (number(step["seconds"]) or 0.0) for step in steps if step["started"] is not None
    ]
    end = time.time() if running else max([*ends, attempt["last"] or begin])
    return begin, max(begin, end)
