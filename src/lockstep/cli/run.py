"""`lockstep run`, and `pipeline.py` at the root of a project, which is the same."""

import argparse
import sys
from pathlib import Path

from lockstep.catalog.run import CATALOG, project_root
from lockstep.errors import UsageError
from lockstep.linux import require_linux

DEFAULT_FILE = "parameters.yaml"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--parameters", metavar="FILE", type=Path, help=f"default: {DEFAULT_FILE} where it exists")
    parser.add_argument("--run-id", metavar="ID", help="the name of the run's folder; default: by time")
    parser.add_argument("--tag", help="a word of yours, shown by lockstep list")
    parser.add_argument("--resume", metavar="RUN", help="continue a run, or start a new one from its checkpoint")
    parser.add_argument("--catalog", metavar="FOLDER", type=Path, help=f"default: {CATALOG} in the project's root")
    parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="parameters for this run")


def run(arguments: argparse.Namespace) -> int:
    """Start the fork server first, since importing torch takes longest, and everything else beside it."""
    require_linux("training")
    folder = Path.cwd()
    for text in arguments.overrides:
        if "=" not in text:
            raise UsageError(f"{text!r} is not key.path=value, such as training.epochs=2 (see --help)")
    from lockstep.launchers.client import Server

    with Server() as server:
        from lockstep.orchestration.display import Display
        from lockstep.orchestration.start import Request, start

        file = arguments.parameters
        if file is None and arguments.resume is None and (folder / DEFAULT_FILE).is_file():
            file = folder / DEFAULT_FILE
        request = Request(
            catalog=(arguments.catalog or project_root(folder) / CATALOG).absolute(),
            folder=folder,
            argv=sys.argv,
            file=file.absolute() if file else None,
            overrides=arguments.overrides,
            run_id=arguments.run_id,
            tag=arguments.tag,
            resume=arguments.resume,
        )
        return start(request, server, Display(), arguments.began)
