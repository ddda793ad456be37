"""The command line. Each command's module is imported only when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from lockstep import __version__
from lockstep.cli.guard import guarded, open_streams
from lockstep.errors import Interrupted

COMMANDS = {
    "run": "train what a parameter file describes, and record it",
    "resume": "go on with a run, after asking what changed since",
    "list": "the runs of the catalog, newest first",
    "show": "one run: what it was, how it went, what its ranks say",
    "diff": "two runs: what differs, and the first step at which they part",
    "reproduce": "run a run again from its record, and say whether the same came out",
    "verify": "every byte of a run against what vouches for it",
    "seal": "seal a run as it stands, sign it, anchor it outside its folder",
    "report": "one HTML file for one run, or for several side by side",
    "export": "a run as an in-toto statement, OpenLineage events, or in MLflow",
    "ui": "the catalog in a browser, on this machine only: find, compare, watch",
    "explain": "which run made a file that was found anywhere, and from what",
    "gc": "remove old runs, and say first which; tombstones stay",
    "doctor": "what dead processes left, and mending what is safe",
    "collectives": "how gradients travel: drawn, proven, costed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # while the command was still being imported
        return Interrupted.exit_status


def _main(arguments: Sequence[str] | None) -> int:
    open_streams()
    words = [*(sys.argv[1:] if arguments is None else arguments)]  # `list` is a module here, once imported
    if words[:1] == [
        "run"
    ]:  # a parser of its own: argparse mixes options and KEY=VALUE only without subcommands
        from lockstep.cli.run import LOCKSTEP, program

        return program(LOCKSTEP, COMMANDS["run"], "lockstep run", words[1:])
    if words[:1] == ["resume"]:
        from lockstep.cli import resume

        return resume.program(COMMANDS["resume"], words[1:])
    parser = argparse.ArgumentParser(
        prog="lockstep",
        description="Train PyTorch models across processes, and keep records that can be trusted.",
    )
    parser.add_argument("--version", action="version", version=f"lockstep {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in words if word in COMMANDS), None)
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        parser.error(unknown(asked))
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            importlib.import_module(f"lockstep.cli.{name}").configure(subparser)
    parsed = parser.parse_args(words)
    return guarded(lambda: int(importlib.import_module(f"lockstep.cli.{parsed.command}").run(parsed)))


def unknown(word: str) -> str:
    """What to say of a word that is no command, with the nearest that is."""
    import difflib

    from lockstep.files import printable

    near = "run" if "=" in word else next(iter(difflib.get_close_matches(word, COMMANDS, n=1)), None)
    meant = f"; did you mean lockstep {near}?" if near else ""
    return f"found the command {printable(word[:100])!r}, allowed: {', '.join(COMMANDS)}{meant}"
