"""Tables and lines fitted to a terminal: columns of least use are left out, and no cell and no word is broken.

Widths are those on the terminal: a Chinese character takes two columns, an accent of its own none.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lockstep.catalog.text import Table

GAP = "  "
NARROWEST = 8  # what a cell of text is cut down to
NARROWEST_PROSE = 20  # below it, words beside a name are not worth wrapping


@dataclass(frozen=True)
class Layout:
    """The cells that fit, each as wide as its column, line by line; and the columns left out, by their headings."""

    heading: list[str]
    body: list[list[str]]
    left_out: list[str]

    @property
    def width(self) -> int:
        """Of the widest line."""
        return max((width_of(GAP.join(line).rstrip()) for line in [self.heading, *self.body]), default=0)


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def clipped(text: str, width: int) -> str:
    """The beginning of a text, with a sign that there was more."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A line broken between words. One word that is too long, such as a path, stays whole: it can be copied."""
    if width_of(text) <= width:
        return [text]
    own = text[: len(text) - len(text.lstrip())]
    lines, line = [], own
    for word in re.findall(r"[^ \t\n]+", text):  # a no-break space breaks no line
        apart = "" if not line.strip() else " "
        if apart and width_of(line) + 1 + width_of(word) > width:
            lines.append(line)
            line, apart = own + indent, ""
        line += apart + word
    return [*lines, line]


def fit(table: Table, width: int) -> Layout:
    """The table in so many columns. Facts (without headings) keep all words, below each other where they must."""
    if not table.headings:
        return Layout([], _facts(table.rows, width), [])
    everything = [table.headings, *table.rows]
    natural = [max(width_of(row[column]) for row in everything) for column in range(len(table.headings))]
    widths = {column: natural[column] for column in _kept(table, natural, width)}
    _narrow(widths, [column for column in widths if column not in table.numeric], width)
    while _total([*widths.values()]) > width and len(widths) > 1:
        widths.popitem()  # the last: only figures are left, and of a figure no part can be cut off
    heading, *body = ([*_cells(row, widths, table.numeric)] for row in everything)
    left_out = [
        name
        for column, name in enumerate(table.headings)
        if name and column not in widths and not table.is_empty(column)
    ]
    return Layout(heading, body, left_out)


def _kept(table: Table, natural: Sequence[int], width: int) -> list[int]:
    """The columns that stay: empty ones go first, then those that the table can do without, in its order."""
    kept = list(range(len(table.headings)))
    for column in dict.fromkeys([*filter(table.is_empty, table.droppable), *table.droppable]):
        if _total([natural[each] for each in kept]) <= width:
            break
        kept.remove(column)
    return kept


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _narrow(widths: dict[int, int], columns: Sequence[int], width: int) -> None:
    """Take from the widest column of text, again and again, until all fit or none can give more."""
    while (excess := _total([*widths.values()]) - width) > 0:
        widest = max(columns, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= NARROWEST:
            return
        others = [widths[column] for column in columns if column != widest]
        target = max([NARROWEST, *(other for other in others if other < widths[widest])])
        widths[widest] = max(target, widths[widest] - excess, NARROWEST)


def _cells(row: Sequence[str], widths: dict[int, int], numeric: frozenset[int]) -> Iterator[str]:
    for column, width in widths.items():
        text = clipped(row[column], width)
        blank = " " * (width - width_of(text))
        yield blank + text if column in numeric else text + blank


def _facts(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """A name and what there is to say of it, whose words go on below each other."""
    names = max((width_of(row[0]) for row in rows), default=0)
    room = max(width - names - len(GAP), NARROWEST_PROSE)
    lines = []
    for name, *rest in rows:
        heads = [name + " " * (names - width_of(name))]
        for line in wrapped(GAP.join(rest), room):
            lines.append([heads.pop() if heads else " " * names, line])
    return lines
