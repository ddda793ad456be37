"""`lockstep doctor`: what dead processes left, and --fix mends what is safe to mend."""

import argparse

from lockstep import linux
from lockstep.catalog import diagnosis
from lockstep.catalog.diagnosis import Ailment
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.files import printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--fix", action="store_true", help="mend what is safe to mend, and say what was done")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 where anything remains."""
    linux.require_linux("lockstep doctor")
    catalog = catalog_of(arguments)
    found = list(diagnosis.examine(catalog))
    done = [_mended(each) for each in found] if arguments.fix else []
    remaining = list(diagnosis.examine(catalog)) if arguments.fix else found
    if arguments.json:
        told = [each.as_dict() for each in found]
        output.write_json({"found": told, "done": done, "remaining": [each.as_dict() for each in remaining]})
        return int(bool(remaining))
    for sentence in filter(None, done):
        output.write_line(printable(sentence))
    for each in remaining:
        mendable = "" if each.mend is None or arguments.fix else " [--fix mends it]"
        output.write_line(f"{each}{mendable}")
    if not found:
        output.write_line(f"nothing was left behind in {catalog}")
    elif not remaining:
        output.write_line("nothing remains")
    return int(bool(remaining))


def _mended(each: Ailment) -> str | None:
    """What was done about it; an error of the file system is said, and the next one is gone on with."""
    if each.mend is None:
        return None
    try:
        return each.mend()
    except FileNotFoundError:
        return f"{each.place} is gone already"
    except OSError as error:
        return f"{each.place} could not be mended: {error.strerror}"
