"""`lockstep run`, and `pipeline.py` at the root of a project, which is the same."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.catalog.run import CATALOG, Run, project_root
from lockstep.cli.guard import guarded, open_streams
from lockstep.errors import UsageError
from lockstep.files import readable
from lockstep.readiness import require_training

if TYPE_CHECKING:  # pydantic comes with it, and nothing is imported before the fork server has started
    from lockstep.parameters import Parameters

DEFAULT_FILE = "parameters.yaml"


@dataclass(frozen=True)
class Face:
    """How a command asks for parameters and what it says last: `lockstep run`, or a program of one's own.

    ``read(file, overrides, resumed)`` returns the parameters; ``file`` is None where a run is resumed and no
    file is named. It is called when the fork server is on its way, so it imports what it needs itself.
    """

    read: "Callable[[Path | None, Sequence[str], Run | None], Parameters] | None" = None  # None: by sections
    default_file: Path | None = None  # None: parameters.yaml where the command is started, if there is one
    example: str = "training.epochs"  # the key that asks for more epochs, for messages and the help
    epilogue: Callable[[Run], Iterable[str]] | None = None  # lines below the closing table


LOCKSTEP = Face()


def program(
    face: Face, description: str | None = None, name: str | None = None, words: Sequence[str] | None = None
) -> int:
    """A whole command with a face of its own; returns the exit status, as `lockstep.cli.main` does."""
    began = time.monotonic()
    open_streams()
    parser = argparse.ArgumentParser(prog=name, description=description)
    configure(parser, face)
    arguments = parser.parse_intermixed_args(words)  # options and KEY=VALUE in any order
    arguments.began = began
    return guarded(lambda: run(arguments, face))


def configure(parser: argparse.ArgumentParser, face: Face = LOCKSTEP) -> None:
    """Options of the command."""
    default = os.path.relpath(face.default_file) if face.default_file else f"{DEFAULT_FILE} where it exists"
    parser.add_argument("--parameters", metavar="FILE", type=Path, help=f"default: {default}")
    parser.add_argument("--run-id", metavar="ID", help="the name of the run's folder; default: by time")
    parser.add_argument("--tag", type=readable, help="a word of yours, shown by lockstep list")
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a run, or start a new one from its checkpoint"
    )
    parser.add_argument(
        "--reproduces",
        metavar="RUN",
        help="record that this run repeats RUN; lockstep reproduce does the rest",
    )
    parser.add_argument(
        "--catalog", metavar="FOLDER", type=Path, help=f"default: {CATALOG} in the project's root"
    )
    parser.add_argument(
        "--check-only",
        action="store_true",
        help="look at the model, compare the strategy with it on a few samples, and end; nothing is kept",
    )
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help=f"parameters for this run, such as {face.example}=2"
    )


def run(arguments: argparse.Namespace, face: Face = LOCKSTEP) -> int:
    """Start the fork server first, since importing torch takes longest, and everything else beside it."""
    require_training("training")
    folder = Path.cwd()
    for text in arguments.overrides:
        if "=" not in text:
            raise UsageError(f"{text!r} is not key=value, such as {face.example}=2 (see --help)")
    from lockstep.launchers.client import Server

    with Server() as server:
        from lockstep.orchestration.display import Display
        from lockstep.orchestration.start import Request, read_sections, start

        file = arguments.parameters
        if arguments.reproduces is not None and arguments.resume is not None:
            raise UsageError("--reproduces begins anew and --resume goes on: one of the two")
        default = face.default_file or folder / DEFAULT_FILE
        if file is None and arguments.resume is None and (face.default_file or default.is_file()):
            file = default
        request = Request(
            catalog=(arguments.catalog or project_root(folder) / CATALOG).absolute(),
            folder=folder,
            argv=sys.argv,
            file=file.absolute() if file else None,
            overrides=arguments.overrides,
            run_id=arguments.run_id,
            tag=arguments.tag,
            resume=arguments.resume,
            reproduces=arguments.reproduces,
            read=face.read or read_sections,
            example=face.example,
            epilogue=face.epilogue,
        )
        if arguments.check_only:
            if request.resume is not None or request.reproduces is not None:
                raise UsageError("--check-only looks at a new run: allowed without --resume and --reproduces")
            from lockstep.orchestration.checking import check

            return check(request, server, Display())
        return start(request, server, Display(), arguments.began)
