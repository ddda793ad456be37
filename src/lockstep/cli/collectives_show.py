"""`lockstep collectives show`: the rounds of a collective, as rows of text or as an SVG drawing."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.cli.collectives import ONLY_HIERARCHICAL, at_least_one
from lockstep.collectives.schedule import COLLECTIVES, PAIRS
from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.catalog.text import Table
    from lockstep.collectives.schedule import Schedule

MOST_RANKS = 128
MOST_PIECES = 1024
PARAMETER_SERVER = "parameter_server"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add_choice(parser, required=True, also=(PARAMETER_SERVER,))
    parser.add_argument(
        "--servers",
        metavar="COUNT",
        type=at_least_one,
        help="for parameter_server, beside the ranks; default: 1",
    )
    parser.add_argument("--world-size", metavar="RANKS", type=at_least_one, default=4, help="default: 4")
    parser.add_argument(
        "--ranks-per-machine",
        metavar="RANKS",
        type=at_least_one,
        help="for hierarchical; default: all on one",
    )
    parser.add_argument(
        "--pieces", metavar="COUNT", type=at_least_one, help="chunks of each tree; default: 8"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a drawing instead of printing rows")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def add_choice(parser: argparse.ArgumentParser, required: bool, also: tuple[str, ...] = ()) -> None:
    """Which algorithm, and which collective."""
    parser.add_argument("--algorithm", choices=[*PAIRS, *also], required=required)
    parser.add_argument("--collective", choices=COLLECTIVES, default="all_reduce", help="default: all_reduce")


def run(arguments: argparse.Namespace) -> int:
    """Print or draw the rounds."""
    from lockstep import files
    from lockstep.cli import output
    from lockstep.collectives import draw

    if arguments.svg is not None and (not arguments.svg.name or arguments.svg.is_dir()):
        raise UsageError(f"--svg: found {str(arguments.svg)!r}, allowed: the name of a file to write")
    schedules = _schedules(arguments)
    if arguments.svg:
        if len(schedules) > draw.MOST_LANES:
            raise UsageError(
                f"a drawing holds at most {draw.MOST_LANES} ranks; rows of text up to {MOST_RANKS}"
            )
        files.write_atomically(arguments.svg, draw.svg(schedules))
    if arguments.json:
        output.write_json(_value(schedules))
    elif arguments.svg:
        output.write_line(f"{draw.title(schedules[0])}: drawn in {arguments.svg}")
    else:
        output.write_line(draw.title(schedules[0]))
        output.write_line()
        output.write_table(_table(schedules))
    return 0


def _schedules(arguments: argparse.Namespace) -> "list[Schedule]":
    from lockstep.collectives.schedule import make
    from lockstep.collectives.topology import Topology

    size = arguments.world_size
    if (arguments.pieces or 0) > MOST_PIECES:
        raise UsageError(f"--pieces: found {arguments.pieces:,}, allowed: at most {MOST_PIECES}")
    if size > MOST_RANKS:
        raise UsageError(f"{size:,} ranks are too many to look at; at most {MOST_RANKS}")
    if arguments.algorithm == PARAMETER_SERVER:
        return _with_servers(arguments, size, arguments.servers or 1)
    if arguments.servers:
        raise UsageError(f"--servers goes with --algorithm {PARAMETER_SERVER}")
    if arguments.ranks_per_machine and arguments.algorithm != "hierarchical":
        raise UsageError(ONLY_HIERARCHICAL)
    topology = Topology(size, arguments.ranks_per_machine or size)
    options = {"pieces": arguments.pieces} if arguments.pieces else {}
    return [
        make(arguments.collective, arguments.algorithm, rank, size, topology, **options)
        for rank in range(size)
    ]


def _with_servers(arguments: argparse.Namespace, workers: int, servers: int) -> "list[Schedule]":
    from lockstep.collectives import parameter_server

    if arguments.collective != "all_reduce" or arguments.pieces or arguments.ranks_per_machine:
        raise UsageError(f"{PARAMETER_SERVER} takes --world-size (workers) and --servers, and no other shape")
    if workers + servers > MOST_RANKS:
        raise UsageError(f"{workers + servers} processes are too many to look at; at most {MOST_RANKS}")
    return [parameter_server.schedule(rank, workers, servers) for rank in range(workers + servers)]


def _table(schedules: "Sequence[Schedule]") -> "Table":
    from lockstep.catalog.text import Table
    from lockstep.collectives.draw import messages, name_of

    first = schedules[0]
    rows = []
    for number, found in enumerate(messages(schedules), start=1):
        for index, message in enumerate(found):
            what = "added to what is there" if message.added else "taken as it is"
            names = [name_of(first, rank).removeprefix("rank ") for rank in (message.source, message.to)]
            rows.append((str(number) if index == 0 else "", *names, message.label, what))
    return Table(rows, ("round", "from", "to", "chunks", "by the receiver"), frozenset({0, 1, 2}))


def _value(schedules: "Sequence[Schedule]") -> dict[str, object]:
    from lockstep.collectives.draw import messages

    first = schedules[0]
    return {
        "collective": first.collective,
        "algorithm": first.algorithm,
        "world_size": first.world_size,
        "servers": first.servers,
        "chunks": first.chunks,
        "rounds": [
            [
                {
                    "from": message.source,
                    "to": message.to,
                    "chunks": list(message.chunks),
                    "kind": "receive_reduce" if message.added else "receive",
                }
                for message in found
            ]
            for found in messages(schedules)
        ],
    }
