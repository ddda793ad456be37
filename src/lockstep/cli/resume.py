"""`lockstep resume RUN`: go on with a run, after asking what changed since."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lockstep.catalog.run import CATALOG, project_root
from lockstep.cli.guard import guarded
from lockstep.errors import UsageError
from lockstep.files import readable
from lockstep.readiness import require_training

KINDS = ("parameters", "data", "code", "packages")


def program(description: str, words: Sequence[str]) -> int:
    """The whole command: KEY=VALUE and options in any order."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="lockstep resume", description=description)
    configure(parser)
    arguments = parser.parse_intermixed_args(words)
    arguments.began = began
    return guarded(lambda: run(arguments))


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, latest, or a run's folder")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="parameters to change: a new run from its checkpoint",
    )
    parser.add_argument(
        "--accept",
        metavar="WHAT",
        action="append",
        choices=KINDS,
        default=[],
        help=f"a change since RUN that is meant, one of {', '.join(KINDS)}; may be repeated",
    )
    parser.add_argument(
        "--keep",
        metavar="WHAT",
        action="append",
        choices=KINDS[:2],
        default=[],
        help="parameters or data: go on with what RUN's folder holds, whatever is outside it",
    )
    parser.add_argument("--run-id", metavar="ID", help="the name of a new run's folder, where one is made")
    parser.add_argument("--tag", type=readable, help="a word of yours for a new run, where one is made")
    parser.add_argument(
        "--catalog", metavar="FOLDER", type=Path, help=f"default: {CATALOG} in the project's root"
    )


def run(arguments: argparse.Namespace) -> int:
    """Start the fork server first, as `run` does."""
    require_training("training")
    folder = Path.cwd()
    both = set(arguments.accept) & set(arguments.keep)
    if both:
        raise UsageError(f"--accept {min(both)} and --keep {min(both)} contradict each other: one of the two")
    for text in arguments.overrides:
        if "=" not in text:
            raise UsageError(f"{text!r} is not key=value, such as training.epochs=60")
    from lockstep.launchers.client import Server

    with Server() as server:
        from lockstep.orchestration.display import Display
        from lockstep.orchestration.start import Request, start

        request = Request(
            catalog=(arguments.catalog or project_root(folder) / CATALOG).absolute(),
            folder=folder,
            argv=sys.argv,
            overrides=arguments.overrides,
            run_id=arguments.run_id,
            tag=arguments.tag,
            resume=arguments.run,
            asks=True,
            accept=frozenset(arguments.accept),
            keep=frozenset(arguments.keep),
        )
        return start(request, server, Display(), arguments.began)
