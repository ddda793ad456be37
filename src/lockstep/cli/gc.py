"""`lockstep gc`: remove old runs, and say first which."""

import argparse
import time

from lockstep.catalog import collect
from lockstep.catalog.collect import COLLECTABLE, Criteria, Plan
from lockstep.catalog.report.values import counted, moment, show_bytes, show_moment
from lockstep.catalog.text import Table, cell
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.files import one_line, readable


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--older-than", metavar="AGE", help="whose last event is older: 30d, 12h, or a date")
    parser.add_argument(
        "--keep-last", metavar="N", type=int, help="keep the newest N of those that are meant"
    )
    parser.add_argument("--status", metavar="WORDS", help=f"only these, by commas: {', '.join(COLLECTABLE)}")
    parser.add_argument("--tag", type=readable, help="only runs of this tag")
    parser.add_argument(
        "--apply", action="store_true", help="remove them; without it, only what would go is said"
    )
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan, and carry it out where that was asked for."""
    catalog = catalog_of(arguments)
    words = tuple(word.strip() for word in arguments.status.split(",")) if arguments.status else ()
    criteria = Criteria(arguments.older_than, arguments.keep_last, words, arguments.tag)
    if not catalog.is_dir():
        collect.plan(catalog, criteria, time.time())  # to refuse criteria that mean nothing
        output.write_line(f"no runs in {catalog} yet: nothing to collect")
        return 0
    if not arguments.apply:
        _tell(collect.plan(catalog, criteria, time.time()), criteria, arguments, [])
        return 0
    with collect.alone(catalog):
        made = collect.plan(catalog, criteria, time.time())
        spared = list(collect.apply(catalog, made, criteria))
    _tell(made, criteria, arguments, spared)
    return int(bool(spared))


def _tell(made: Plan, criteria: Criteria, arguments: argparse.Namespace, spared: list[str]) -> None:
    if arguments.json:
        output.write_json({**made.as_dict(), "applied": arguments.apply, "spared": spared})
        return
    rows = [
        (
            cell(row["run_id"], 64),
            cell(row["status"]),
            cell(row["tag"], 24),
            show_moment(moment(row["created"])),
            show_bytes(row["bytes"]),
        )
        for row in made.runs
    ]
    if rows:
        output.write_table(Table(rows, ("run", "status", "tag", "created", "size"), frozenset({4})))
    for run_id, why in made.kept.items():
        output.write_line(f"stays: {cell(run_id, 64)}, because {cell(why, 100)}")
    for sentence in spared:
        output.write_line(one_line(sentence))
    did = "removed" if arguments.apply else "would remove"
    parts = [counted(len(made.runs) - len(spared), "run")]
    parts += [counted(len(made.stored), "stored file")] if made.stored else []
    parts += [counted(len(made.unfinished), "removal") + " that was cut short"] if made.unfinished else []
    output.write_line(f"{did} {', '.join(parts)}: {show_bytes(made.freed_bytes)}")
    if not criteria.given:
        output.write_line("no run is meant: choose with --older-than, --keep-last, --status, --tag")
    if not arguments.apply and (made.runs or made.stored or made.unfinished):
        output.write_line("nothing was changed: --apply removes them")
