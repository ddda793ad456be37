"""Recorded values as text that is safe and steady on a terminal: cells, tables, times."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lockstep import strict_json
from lockstep.catalog.report.values import DASH, number
from lockstep.files import printable
from lockstep.strict_json import named

WIDEST_CELL = 48
DEEPEST = 12


@dataclass(frozen=True)
class Table:
    """Rows of cells below headings; without headings they are facts, a name and a value each.

    ``droppable`` are the columns that a narrow terminal can do without, the least useful first.
    """

    rows: Sequence[Sequence[str]]
    headings: Sequence[str] = ()
    numeric: frozenset[int] = field(default_factory=frozenset)
    droppable: Sequence[int] = ()

    def is_empty(self, column: int) -> bool:
        """Whether no row has anything there."""
        return all(row[column] in ("", DASH) for row in self.rows)


def cell(value: object, widest: int = WIDEST_CELL) -> str:
    """One line of printable text, cut to a width; a dash for what is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return DASH
    text = value if isinstance(value, str) else str(named(value))
    text = " ".join(printable(text[: 4 * widest]).split())
    return text if len(text) <= widest else text[: widest - 1] + "…"


def show_value(value: object, widest: int = WIDEST_CELL) -> str:
    """Any recorded value on one line: also true, false, and lists as JSON writes them."""
    if isinstance(value, bool | list | dict):
        try:
            value = strict_json.encode(json_safe(value), ensure_ascii=False)
        except (ValueError, RecursionError):
            return DASH
    return cell(value, widest)


def lines_of(value: object, most: int = 40) -> list[str]:
    """Recorded text of several lines, made printable, at most so many of them."""
    if not isinstance(value, str):
        return []
    lines = [printable(line).replace("\t", "    ") for line in value[:20_000].splitlines()]
    return lines if len(lines) <= most else [*lines[:most], f"... {len(lines) - most} more lines"]


def show_age(seconds: object) -> str:
    """A length of time in one rough unit: 12 s, 3 min, 5 h, 2 d."""
    found = number(seconds)
    if found is None or found < 0:
        return DASH
    for below, scale, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if found < below:
            return f"{found / scale:.0f} {unit}"
    return f"{found / 86400:.0f} d"


def plain(table: Table) -> str:
    """The table as aligned lines."""
    rows = [list(row) for row in ([table.headings] if table.headings else []) + list(table.rows)]
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            text.rjust(width) if column in table.numeric else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def json_safe(value: object, depth: int = DEEPEST) -> Any:
    """The value without what is nested beyond sense."""
    if isinstance(value, dict):
        return {str(key): json_safe(inner, depth - 1) for key, inner in value.items()} if depth else None
    if isinstance(value, list | tuple):
        return [json_safe(inner, depth - 1) for inner in value] if depth else None
    return value
