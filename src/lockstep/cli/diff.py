"""`lockstep diff A B`: what differs between two runs, and the first step at which they part."""

import argparse
import math
from pathlib import Path

from lockstep.catalog import compare
from lockstep.catalog.compare import text
from lockstep.catalog.run import Run, find
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("a", metavar="A", help="a run: an id, the beginning of one, latest, or a folder")
    parser.add_argument("b", metavar="B", help="the run to hold against it")
    add_tolerance(parser)
    parser.add_argument(
        "--lines", metavar="K", type=int, default=text.DIFF_LINES, help="how much of the code's diff to show"
    )
    add_reading_options(parser)


def add_tolerance(parser: argparse.ArgumentParser) -> None:
    """How far apart numbers may be and still agree."""
    parser.add_argument(
        "--tolerance",
        metavar="T",
        type=float,
        help="agree where numbers differ by at most this share of the larger; default: the same bits",
    )


def checked_tolerance(arguments: argparse.Namespace) -> float | None:
    """The tolerance; UsageError where it is none."""
    found: float | None = arguments.tolerance
    if found is not None and not (math.isfinite(found) and found >= 0):
        raise UsageError(f"--tolerance {found}: found no finite number from 0, allowed: such as 1e-6")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; 0 where the runs agree, 1 where they part."""
    tolerance = checked_tolerance(arguments)
    if arguments.lines < 0:
        raise UsageError(f"--lines {arguments.lines}: 0 or more are allowed")
    catalog = catalog_of(arguments)
    a, b = find(catalog, arguments.a), find(catalog, arguments.b)
    found = compare.compare(a, b, folders_of(a, b), tolerance)
    if arguments.json:
        output.write_json(found)
    else:
        output.write_blocks(text.blocks(found, arguments.lines))
    return 0 if found["training"]["verdict"] in (compare.SAME, compare.WITHIN) else 1


def folders_of(*runs: Run) -> list[Path]:
    """Where a repository may stand that knows the runs' commits: here, and where their catalogs are."""
    return list(dict.fromkeys([Path.cwd(), *(run.catalog for run in runs)]))
