"""`lockstep collectives`: how gradients travel, drawn, proven, costed, measured and run on processes."""

import argparse
import importlib
from typing import Any

SUBCOMMANDS = {
    "show": "draw who sends which chunk to whom, round by round",
    "prove": "show by symbolic execution that every algorithm is right at every world size",
    "cost": "what collectives would take on a cluster, by the alpha-beta-gamma model",
    "bench": "measure our all-reduce and gloo's own in turn, on processes of this machine",
    "pipeline": "draw and prove in which order the ranks of a pipeline compute",
    "run": "train a small linear model on real processes, each step checked against the serial result",
}
"""Each is a module of its own, ``collectives_<name>``, with ``configure`` and ``run`` as a command has."""


def configure(parser: argparse.ArgumentParser) -> None:
    """One parser below for each subcommand."""
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, summary in SUBCOMMANDS.items():
        _module(name).configure(subparsers.add_parser(name, help=summary, description=summary))


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    return int(_module(arguments.subcommand).run(arguments))


def _module(name: str) -> Any:
    return importlib.import_module(f"lockstep.cli.collectives_{name}")


ONLY_HIERARCHICAL = "--ranks-per-machine goes with --algorithm hierarchical: no other asks who stands where"


def at_least_one(text: str) -> int:
    """A count, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
