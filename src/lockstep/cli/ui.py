"""`lockstep ui`: the catalog in a browser, on this machine only."""

import argparse
import webbrowser
from pathlib import Path

from lockstep.catalog.run import CATALOG
from lockstep.cli import output
from lockstep.cli.list import catalog_of
from lockstep.errors import Interrupted
from lockstep.ui.answers import Site
from lockstep.ui.server import DEFAULT_PORT, Server


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}; 0: any that is free"
    )
    parser.add_argument(
        "--catalog", metavar="FOLDER", type=Path, help=f"default: {CATALOG} in the project's root"
    )
    parser.add_argument("--open", choices=("yes", "no"), default="no", help="show it in the browser at once")


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    catalog = catalog_of(arguments)
    with Server(Site(catalog), arguments.port) as server:
        output.write_line(f"{server.url}  shows {catalog}; Ctrl-C ends it")
        if arguments.open == "yes":
            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            output.write_line()
            return Interrupted.exit_status
    return 0
