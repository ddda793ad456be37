"""`lockstep collectives cost`: what collectives would take on a cluster, by the alpha-beta-gamma model."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from lockstep.cli.collectives import at_least_one
from lockstep.cli.collectives_show import MOST_PIECES, add_choice
from lockstep.collectives.schedule import PAIRS
from lockstep.collectives.topology import BETWEEN, GAMMA_SECONDS_PER_BYTE, INSIDE, Topology
from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.catalog.text import Table
    from lockstep.collectives.cost import Cost


MOST_RANKS, MOST_BYTES = 1_000_000, 10**18  # for so many ranks there is always one that can be simulated

SLOW_RANKS = 2048  # from so many on, a simulation may take seconds, and says that it goes on


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add_choice(parser, required=False)
    parser.add_argument("--world-size", metavar="RANKS", type=at_least_one, nargs="+", required=True)
    parser.add_argument(
        "--bytes", metavar="COUNT", type=at_least_one, required=True, help="size of the buffer"
    )
    parser.add_argument(
        "--ranks-per-machine", metavar="RANKS", type=at_least_one, default=8, help="default: 8"
    )
    parser.add_argument(
        "--pieces", metavar="COUNT", type=at_least_one, help="chunks of each tree; default: 8"
    )
    for where, link in (("inside", INSIDE), ("between", BETWEEN)):
        machines = "a machine" if where == "inside" else "machines"
        parser.add_argument(
            f"--{where}-alpha-us",
            metavar="MICROSECONDS",
            type=_positive,
            default=link.alpha_seconds * 1e6,
            help=f"a message's fixed cost {where} {machines}; default: %(default)g",
        )
        parser.add_argument(
            f"--{where}-gb-per-second",
            metavar="GB",
            type=_positive,
            default=1e-9 / link.beta_seconds_per_byte,
            help=f"bandwidth of a rank's link {where} {machines}; default: %(default)g",
        )
    parser.add_argument(
        "--add-gb-per-second",
        metavar="GB",
        type=_positive,
        default=1e-9 / GAMMA_SECONDS_PER_BYTE,
        help="bytes received that a rank adds in a second; default: %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print: one algorithm in detail, or the times of all side by side."""
    from lockstep.cli import output

    for option, counts, most in (
        ("world-size", arguments.world_size, MOST_RANKS),
        ("bytes", [arguments.bytes], MOST_BYTES),
        ("ranks-per-machine", [arguments.ranks_per_machine], MOST_RANKS),
        ("pieces", [arguments.pieces or 0], MOST_PIECES),
    ):
        if max(counts) > most:
            found = f"{max(counts):,}" if max(counts) < 10**30 else "a number of more than 30 digits"
            raise UsageError(f"--{option}: found {found}, allowed: at most {most:,}")
    costs = [_costs(arguments, _topology(arguments, size)) for size in arguments.world_size]
    if arguments.json:
        output.write_json([asdict(cost) for row in costs for cost in row])
        return 0
    output.write_line(_assumptions(arguments))
    output.write_line()
    if arguments.algorithm:
        output.write_table(_details([row[0] for row in costs]))
    else:
        output.write_table(_comparison(arguments, costs))
    return 0


def _topology(arguments: argparse.Namespace, world_size: int) -> Topology:
    return Topology.of(
        world_size,
        arguments.ranks_per_machine,
        (arguments.inside_alpha_us, arguments.inside_gb_per_second),
        (arguments.between_alpha_us, arguments.between_gb_per_second),
        arguments.add_gb_per_second,
    )


def _costs(arguments: argparse.Namespace, topology: Topology) -> "list[Cost]":
    """Of the algorithm that was asked for, or of all that do the collective and can be simulated."""
    from lockstep.cli import output
    from lockstep.collectives.cost import simulate

    found = []
    for algorithm in [arguments.algorithm] if arguments.algorithm else _algorithms(arguments):
        if topology.world_size >= SLOW_RANKS:
            output.write_progress(f"simulating {algorithm} on {topology.world_size:,} ranks ...")
        options = {"pieces": arguments.pieces} if arguments.pieces and algorithm == "tree" else {}
        try:
            found.append(simulate(arguments.collective, algorithm, arguments.bytes, topology, **options))
        except UsageError:
            if arguments.algorithm:
                raise
    output.end_progress()
    return found


def _algorithms(arguments: argparse.Namespace) -> list[str]:
    return [name for name, collectives in PAIRS.items() if arguments.collective in collectives]


def _assumptions(arguments: argparse.Namespace) -> str:
    from lockstep.collectives.cost import in_bytes

    return (
        f"{arguments.collective} of {in_bytes(arguments.bytes)}, {arguments.ranks_per_machine} ranks on a machine; "
        f"links: {arguments.inside_alpha_us:g} µs and {arguments.inside_gb_per_second:g} GB/s inside, "
        f"{arguments.between_alpha_us:g} µs and {arguments.between_gb_per_second:g} GB/s between machines; "
        f"adding: {arguments.add_gb_per_second:g} GB/s"
    )


def _details(costs: "list[Cost]") -> "Table":
    from lockstep.catalog.text import Table
    from lockstep.collectives.cost import in_bytes, in_seconds

    rows = [
        (
            f"{cost.world_size:,}",
            cost.algorithm,
            f"{cost.rounds:,}",
            f"{cost.messages:,}",
            in_bytes(cost.bytes_sent),
            in_seconds(cost.seconds),
        )
        for cost in costs
    ]
    headings = ("ranks", "algorithm", "rounds", "messages of the busiest rank", "its bytes sent", "time")
    return Table(rows, headings, frozenset({0, 2, 3, 4, 5}))


def _comparison(arguments: argparse.Namespace, costs: "list[list[Cost]]") -> "Table":
    from lockstep.catalog.text import Table
    from lockstep.collectives.cost import in_seconds, preference

    algorithms = _algorithms(arguments)
    rows = []
    for size, row in zip(arguments.world_size, costs, strict=True):
        times = {cost.algorithm: cost.seconds for cost in row}
        cells = [in_seconds(times[name]) if name in times else "-" for name in algorithms]
        rows.append((f"{size:,}", *cells, min(row, key=preference).algorithm))
    headings = ("ranks", *algorithms, "fastest")
    return Table(rows, headings, frozenset(range(len(algorithms) + 1)), range(len(algorithms), 1, -1))
