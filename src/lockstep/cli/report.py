"""`lockstep report`: one HTML file for one run, or for several side by side."""

import argparse
import os
import sys
import webbrowser
from pathlib import Path

from lockstep.catalog import report
from lockstep.catalog.run import Run, find
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import UsageError
from lockstep.files import digest_of, one_line, write_atomically

FOLDER = ".reports"
MOST_RUNS = 24  # beyond, neither colours nor columns can be told apart


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="an id, the beginning of one, latest, or a run's folder"
    )
    add_reading_options(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help=f"default: {FOLDER}/RUN.html in the catalog, outside every run's sealed folder",
    )
    parser.add_argument(
        "--open",
        choices=("auto", "yes", "no"),
        default="auto",
        help="show it in the browser; auto: on a terminal with a display, without --json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, say where it is, and show it."""
    catalog = catalog_of(arguments)
    runs = list({found.path: found for found in (find(catalog, name) for name in arguments.runs)}.values())
    if len(runs) > MOST_RUNS:
        raise UsageError(f"{len(runs)} runs were named: at most {MOST_RUNS} fit side by side on a page")
    target = _target(arguments.output, catalog, runs)
    content = report.render_from_outside(runs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}. Name another with --output"
        ) from error
    if arguments.json:
        output.write_json({"path": str(target), "runs": [each.run_id for each in runs]})
    else:
        output.write_line(one_line(str(target)))
    if arguments.open == "yes" or (arguments.open == "auto" and not arguments.json and _has_display()):
        webbrowser.open(target.as_uri())
    return 0


def _target(named: Path | None, catalog: Path, runs: list[Run]) -> Path:
    """Where the page goes. Never into a run's folder: a file that the seal does not know would break it."""
    if named is None:
        return catalog / FOLDER / f"{_name(runs)}.html"
    target = named.absolute()
    if target.is_dir():
        raise UsageError(f"{named} is a folder: name a file, such as {named / 'report.html'}")
    if not target.parent.is_dir():
        raise UsageError(f"{named}: there is no folder {target.parent}")
    for folder in target.resolve().parents:
        if (folder / "events.jsonl").is_file():
            raise UsageError(
                f"{named} lies in the folder of run {one_line(folder.name)}: a file that its seal does not know would "
                "break it. Name a file elsewhere"
            )
    return target


def _name(runs: list[Run]) -> str:
    """The runs' ids; of more than two the first, and what tells this choice of runs from another."""
    ids = [each.run_id for each in runs]
    return "-vs-".join(ids) if len(ids) <= 2 else f"{ids[0]}-and-{len(ids) - 1}-more-{digest_of(ids)[:8]}"


def _has_display() -> bool:
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.stdout.isatty() and (sys.platform != "linux" or any(map(os.environ.get, displays)))
