"""`lockstep show`: one run, one of its ranks (live with --follow), or one step of its pipeline."""

import argparse
import re

from lockstep.catalog import show, show_text, status, tail
from lockstep.catalog.run import Run, find
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import Interrupted, UsageError
from lockstep.files import one_line

RANK_LINES = 20
STEP_LINES = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, latest, or a run's folder")
    parser.add_argument(
        "part", metavar="PART", nargs="*", help="rank N: that rank's log and metrics; STEP: that step's log"
    )
    parser.add_argument("--follow", action="store_true", help="with rank N: go on until the run ends")
    parser.add_argument("--lines", metavar="K", type=int, help="how many lines of the log to begin with")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    part = arguments.part
    rank = _rank(part)
    if arguments.follow and (rank is None or arguments.json):
        raise UsageError("--follow goes with rank N, without --json: lockstep show RUN rank 0 --follow")
    if arguments.lines is not None and arguments.lines < 0:
        raise UsageError(f"--lines {arguments.lines}: 0 or more are allowed")
    found = find(catalog_of(arguments), arguments.run)
    if rank is not None:
        return _show_rank(found, rank, arguments)
    if len(part) > 1:
        raise UsageError(f"{' '.join(part)!r} is no part of a run: rank N, or the name of one step")
    return _show_step(found, part[0], arguments) if part else _show_run(found, arguments)


def _rank(part: list[str]) -> int | None:
    if not part or part[0] != "rank":
        return None
    if len(part) != 2 or not re.fullmatch(r"[0-9]{1,6}", part[1]):
        raise UsageError(f"{' '.join(part)!r}: rank is followed by one number, from 0: rank 1")
    return int(part[1])


def _show_run(found: Run, arguments: argparse.Namespace) -> int:
    overview = show.overview(found)
    if arguments.json:
        output.write_json(overview)
    else:
        output.write_blocks(show_text.blocks(overview))
    return 0


def _show_step(found: Run, step: str, arguments: argparse.Namespace) -> int:
    view = show.step_view(found, step, STEP_LINES if arguments.lines is None else arguments.lines)
    if arguments.json:
        output.write_json(view)
    else:
        output.write_blocks(show_text.step_blocks(view))
    return 0


def _show_rank(found: Run, rank: int, arguments: argparse.Namespace) -> int:
    count = RANK_LINES if arguments.lines is None else arguments.lines
    view = show.rank_view(found, rank, count)
    if arguments.json:
        output.write_json(view)
        return 0
    for line in show_text.rank_lines(view):
        output.write_line(line)
    if not arguments.follow:
        output.write_line(
            f"The end of {one_line(view['log_path'])}" if view["log"] else "nothing in its log yet"
        )
        for line in view["log"]:
            output.write_line(line)
        return 0
    try:
        for line in tail.follow(found, rank, count):
            output.write_line(line)
    except KeyboardInterrupt:
        return Interrupted.exit_status
    output.write_line(f"the run has ended: {status.of(found).word}")
    return 0
