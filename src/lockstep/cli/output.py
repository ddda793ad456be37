"""Writing to the terminal: rich tables where there is one, aligned plain text in a pipe or a file."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lockstep import strict_json
from lockstep.catalog.text import Table, json_safe, plain

STYLES = {"succeeded": "green", "failed": "red", "killed": "red", "interrupted": "yellow", "running": "cyan"}

MOST_DRAWN = 500  # rows; rich takes seconds for thousands of them


def write_line(text: str = "") -> None:
    """One line, at once; what the terminal's encoding lacks is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def write_json(value: object) -> None:
    """The value as strict JSON in plain ASCII."""
    write_line(strict_json.encode(json_safe(value), indent=2))


def write_json_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A list of objects as strict JSON in plain ASCII, one on each line: thousands of them take no time."""
    lines = (strict_json.encode(json_safe(row)) for row in rows)
    write_line("[" + ",".join(f"\n{line}" for line in lines) + ("\n]" if rows else "]"))


def write_blocks(blocks: Iterable[tuple[str, Table | list[str]]]) -> None:
    """Headings with tables or lines below them."""
    for index, (heading, content) in enumerate(blocks):
        if index:
            write_line()
        if heading:
            write_line(heading)
        if isinstance(content, Table):
            write_table(content)
        else:
            for line in content:
                write_line(f"  {line}" if heading else line)


def write_table(table: Table) -> None:
    """A table in the form that suits where it goes."""
    if not sys.stdout.isatty() or len(table.rows) > MOST_DRAWN:
        write_line(plain(table))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD, show_header=bool(table.headings), pad_edge=False)
    for column in range(len(table.headings) or max(map(len, table.rows), default=0)):
        heading = table.headings[column] if table.headings else ""
        drawn.add_column(
            heading,
            justify="right" if column in table.numeric else "left",
            no_wrap=column == 0,
            overflow="fold",
        )
    for row in table.rows:
        # Text, not markup: recorded words in square brackets are no instructions.
        drawn.add_row(*(Text(text, style=STYLES.get(text.partition(":")[0], "")) for text in row))
    Console().print(drawn)
