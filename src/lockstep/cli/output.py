"""Writing to the terminal: tables fitted to one where there is one, aligned plain text in a pipe or a file."""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from lockstep import strict_json
from lockstep.catalog.table_layout import GAP, fit, wrapped
from lockstep.catalog.text import Table, json_safe, plain

GREEN, RED, YELLOW, CYAN, BOLD, DIM = "32", "31", "33", "36", "1", "2"  # as terminals are told
CUT = "…"  # at the end of a cell that was cut
STYLES = {"succeeded": GREEN, "failed": RED, "killed": RED, "interrupted": YELLOW, "running": CYAN}


def write_line(text: str = "") -> None:
    """One line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def write_progress(text: str) -> None:
    """What is being waited for, on the standard error: in the place of what was said before on a terminal."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(f"\r{text}\x1b[K" if terminal else f"{text}\n")
    sys.stderr.flush()


def end_progress() -> None:
    """Take the last word of progress off the terminal."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def write_json(value: object) -> None:
    """The value as strict JSON in plain ASCII."""
    write_line(strict_json.encode(json_safe(value), indent=2))


def write_json_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A list of objects as strict JSON in plain ASCII, one on each line: thousands of them take no time."""
    lines = (strict_json.encode(json_safe(row)) for row in rows)
    write_line("[" + ",".join(f"\n{line}" for line in lines) + ("\n]" if rows else "]"))


def write_blocks(blocks: Iterable[tuple[str, Table | list[str]]]) -> None:
    """Headings with tables or lines below them."""
    width = _width()
    for index, (heading, content) in enumerate(blocks):
        if index:
            write_line()
        if heading:
            write_line(heading)
        if isinstance(content, Table):
            write_table(content)
            continue
        for line in content:
            whole = f"  {line}" if heading else line
            for part in wrapped(whole, width, "    ") if width else [whole]:
                write_line(part)


def write_table(table: Table) -> None:
    """A table: fitted to the terminal where there is one, else as wide as it is."""
    width, table = _width(), _as_written(table)
    if not width:
        write_line(plain(table))
        return
    layout = fit(table, width)
    if _encoded(CUT) != CUT:  # the stream would write more than one character
        body = [[text.replace(CUT, "~") for text in line] for line in layout.body]
        layout = replace(layout, body=body)
    lines = [GAP.join(_coloured(line)).rstrip() for line in layout.body]
    if layout.heading:
        rule = "─" * layout.width
        lines = [_in(GAP.join(layout.heading).rstrip(), BOLD), _in(rule, DIM), *lines]
    if layout.left_out:
        words = f"not shown at this width: {', '.join(layout.left_out)}"
        lines += [_in(line, DIM) for line in wrapped(words, width)]
    write_line("\n".join(lines))


def _as_written(table: Table) -> Table:
    """The table with what the output's encoding lacks replaced already, so that widths are those that are seen."""
    rows = [[_encoded(text) for text in row] for row in table.rows]
    return replace(table, rows=rows, headings=[_encoded(text) for text in table.headings])


def _encoded(text: str) -> str:
    if text.isascii():
        return text
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, sys.stdout.errors or "strict").decode(encoding, "replace")


def _width() -> int:
    """The terminal's columns; 0 where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _in(text: str, code: str) -> str:
    plain_only = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain_only else f"\x1b[{code}m{text}\x1b[0m"


def _coloured(cells: Sequence[str]) -> Iterator[str]:
    """The cells of a line, with its status, if there is one, in colour. The first is a name, never a status."""
    for column, text in enumerate(cells):
        code = STYLES.get(text.strip().partition(":")[0]) if column else None
        yield _in(text, code) if code else text
