"""`lockstep list`: the runs of the catalog, newest first, or those that are asked for."""

import argparse
import gc
from pathlib import Path

from lockstep.catalog.access import check_catalog
from lockstep.catalog.list_text import table
from lockstep.catalog.query import COLUMNS, STATUSES, Query, ask
from lockstep.catalog.run import CATALOG, project_root
from lockstep.cli import output
from lockstep.files import readable


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--where",
        metavar="CONDITION",
        type=readable,
        action="append",
        default=[],
        help="only runs that fit: accuracy>0.95, strategy=ddp, tag~base, training.learning_rate<=1e-3; "
        "again for more conditions, all of which have to hold. Signs: = != < <= > >= ~ (contains) !~",
    )
    parser.add_argument(
        "--tag", metavar="TAG", type=readable, action="append", default=[], help="only runs with this tag"
    )
    parser.add_argument(
        "--status",
        metavar="STATUS",
        action="append",
        default=[],
        help=f"only runs that are {', '.join(STATUSES)} (several: failed,killed)",
    )
    parser.add_argument(
        "--since", metavar="WHEN", help="only runs made since: 12h, 7d, 2w, or 2026-11-20 (UTC)"
    )
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help=f"by one of {', '.join(COLUMNS)}, or by a parameter; the best, largest or newest first, "
        "text from a to z (accuracy and loss are the validation split's); COLUMN:asc or COLUMN:desc to say which",
    )
    parser.add_argument("--limit", metavar="N", type=int, help="at most so many runs")
    add_reading_options(parser)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """What every command that reads the catalog takes."""
    parser.add_argument(
        "--catalog", metavar="FOLDER", type=Path, help=f"default: {CATALOG} in the project's root"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def catalog_of(arguments: argparse.Namespace) -> Path:
    """The catalog that was named, or the project's."""
    folder = Path.cwd()
    return check_catalog((arguments.catalog or project_root(folder) / CATALOG).absolute())


def run(arguments: argparse.Namespace) -> int:
    """Print the list. All that it makes lives to its end: looking for garbage would take a tenth of the time."""
    gc.disable()
    try:
        return _list(arguments)
    finally:
        gc.enable()


def _list(arguments: argparse.Namespace) -> int:
    catalog = catalog_of(arguments)
    query = Query(
        arguments.where, arguments.tag, arguments.status, arguments.since, arguments.sort, arguments.limit
    )
    answer = ask(catalog, query)
    if arguments.json:
        output.write_json_rows(answer.rows)
    elif answer.rows:
        output.write_table(table(answer.rows, answer.parameters, answer.columns))
    elif answer.total:
        output.write_line(f"none of the {answer.total:,} runs in {catalog} fits")
    else:
        output.write_line(f"no runs in {catalog} yet: uv run pipeline.py, or uv run lockstep run, makes one")
    return 0
