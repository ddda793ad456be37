"""The command line. Each command's module is imported only when it is called."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

from lockstep import __version__
from lockstep.errors import Interrupted, LockstepError

COMMANDS = {
    "run": "train what a parameter file describes, and record it",
    "list": "the runs of the catalog, newest first",
    "show": "one run: what it was, how it went, what its ranks say",
    "collectives": "how gradients travel: drawn, proven, costed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    began = time.monotonic()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="lockstep", description=(__doc__ or "").split(".")[0])
    parser.add_argument("--version", action="version", version=f"lockstep {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            importlib.import_module(f"lockstep.cli.{name}").configure(subparser)
    parsed = parser.parse_args(words)
    parsed.began = began
    try:
        return int(importlib.import_module(f"lockstep.cli.{parsed.command}").run(parsed))
    except LockstepError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has gone: nobody is left to tell
            sys.stderr.close()
            return 0
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return Interrupted.exit_status
