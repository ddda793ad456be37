"""The figures behind the charts as one block of JSON that the page's script reads, and nothing can break out of."""

import json
from collections.abc import Sequence
from typing import Any

from lockstep.catalog.report.charts import Chart, Line, charts_of
from lockstep.catalog.report.lanes import ceiling
from lockstep.catalog.report.markup import Html
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.steps import MOST_LANE_VALUES, PARTS, Steps
from lockstep.files import printable

# What could end the element, open a comment in it, or end a line of script.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
LONGEST_NAME = 120


def block(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The element, with its content escaped so that no recorded text is ever markup."""
    return Html(f'<script type="application/json" id="figures">{embedded(figures(records, names))}</script>')


def embedded(value: object) -> str:
    """Strict JSON in plain ASCII, without any character that HTML or script gives a meaning."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return "".join(_ESCAPES.get(character, character) for character in text) if _touched(text) else text


def figures(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """Runs, charts and lanes."""
    return {
        "runs": [
            {"name": printable(name)[:LONGEST_NAME], **axis(record.steps)}
            for record, name in zip(records, names, strict=True)
        ],
        "charts": {chart.key: _chart(chart) for chart in charts_of(records)},
        "lanes": {
            str(run): _lanes(record.steps) for run, record in enumerate(records) if len(record.steps) > 1
        },
    }


def axis(steps: Steps) -> dict[str, Any]:
    """The buckets of a run: their steps, and what was spent and seen up to the end of each."""
    return {
        "first": steps.first,
        "last": steps.last,
        "seconds": [short(value, 7) for value in steps.seconds],
        "samples": [round(value) for value in steps.samples],
    }


def short(value: float | None, digits: int) -> float | None:
    """A number without the digits that nobody measures; whole ones without a point."""
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def _touched(text: str) -> bool:
    return any(character in text for character in _ESCAPES)


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "title": chart.title,
        "form": chart.form,
        "top": chart.top,
        "marked": chart.marked,
        "lines": [_line(line) for line in chart.lines],
    }


def _line(line: Line) -> dict[str, Any]:
    steps = None if line.split == "steps" else list(line.steps)  # None: the run's own buckets
    several = any(low != high for low, high in zip(line.low, line.high, strict=True))
    digits = 6 if several else 9
    found: dict[str, Any] = {"run": line.run, "split": line.split, "steps": steps}
    found["values"] = [short(value, digits) for value in line.values]
    if line.under:
        found["under"] = line.under
    if several:
        found["low"] = [short(value, 5) for value in line.low]
        found["high"] = [short(value, 5) for value in line.high]
    return found


def _lanes(steps: Steps) -> dict[str, Any]:
    """Every rank's parts, over fewer buckets where there are many ranks."""
    most = max(20, MOST_LANE_VALUES // (len(PARTS) * max(1, len(steps.lanes))))
    width = max(1, -(-len(steps) // most))
    starts = range(0, len(steps), width)
    return {
        "top": ceiling(steps)[0],
        "first": [steps.first[start] for start in starts],
        "last": [steps.last[min(len(steps), start + width) - 1] for start in starts],
        "ranks": [
            {
                "rank": lane.rank,
                "ready_last": [short(_mean(lane.last, start, width), 3) for start in starts],
                **{
                    part: [short(_mean(lane.parts[part], start, width), 4) for start in starts]
                    for part in PARTS
                },
            }
            for lane in steps.lanes
        ],
    }


def _mean(values: list[float], start: int, width: int) -> float:
    part = values[start : start + width]
    return sum(part) / len(part)
