"""`lockstep reproduce RUN`: run a run again from its record, and say whether the same came out."""

import argparse
import sys
from pathlib import Path

from lockstep.catalog.compare import text
from lockstep.catalog.run import find
from lockstep.cli import output
from lockstep.cli.diff import add_tolerance, checked_tolerance
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.linux import require_linux
from lockstep.readiness import require_started_once


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, latest, or a run's folder")
    parser.add_argument(
        "--prove",
        action="store_true",
        help="run it twice, with fingerprints of every step, and hold the two against each other as well",
    )
    add_tolerance(parser)
    parser.add_argument(
        "--packages",
        choices=("auto", "current", "uv"),
        default="auto",
        help="current: those installed here, uv: the recorded uv.lock; auto: current where they are the same",
    )
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Repeat it and print the verdict; 0 for the same bits or within the tolerance, else 1."""
    require_linux("reproducing a run")
    require_started_once("reproducing a run")
    tolerance = checked_tolerance(arguments)
    found = find(catalog_of(arguments), arguments.run)
    from lockstep.orchestration.reproduce import SAME_ENOUGH, Wish, reproduce

    def say(line: str) -> None:
        sys.stderr.write(line + "\n") if arguments.json else output.write_line(line)

    wish = Wish(
        found,
        Path.cwd(),
        tolerance,
        arguments.prove,
        arguments.packages,
        say,
        sys.stderr if arguments.json else None,
    )
    outcome = reproduce(wish)
    if arguments.json:
        output.write_json(outcome.record)
    else:
        output.write_line()
        for rerun in outcome.reruns:
            output.write_line(f"{rerun.run.shown} against {found.shown}: {rerun.verdict}")
            for line in text.verdict_lines(rerun.found):
                output.write_line(f"  {line}")
        if outcome.between is not None:
            output.write_line("the two repetitions against each other")
            for line in text.verdict_lines(outcome.between):
                output.write_line(f"  {line}")
        output.write_line(f"verdict: {outcome.verdict}")
        output.write_line(f"         {outcome.path}")
    return 0 if outcome.verdict in SAME_ENOUGH else 1
