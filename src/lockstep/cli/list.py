"""`lockstep list`: the runs of the catalog, newest first."""

import argparse
from pathlib import Path

from lockstep.catalog import listing
from lockstep.catalog.run import CATALOG, project_root
from lockstep.cli import output


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
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
    return (arguments.catalog or project_root(folder) / CATALOG).absolute()


def run(arguments: argparse.Namespace) -> int:
    """Print the list."""
    catalog = catalog_of(arguments)
    rows = listing.rows(catalog)
    if arguments.json:
        output.write_json(rows)
    elif rows:
        output.write_table(listing.table(rows))
    else:
        output.write_line(f"no runs in {catalog} yet: uv run pipeline.py makes one")
    return 0
