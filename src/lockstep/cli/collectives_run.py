"""`lockstep collectives run`: real processes that train a small linear model, checked at each step."""

import argparse
from typing import TYPE_CHECKING, Any

from lockstep.cli.collectives import ONLY_HIERARCHICAL, at_least_one
from lockstep.collectives.schedule import PAIRS
from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.catalog.text import Table

PARAMETER_SERVER = "parameter_server"
TOLERANCE = 1e-10
MOST = {"world-size": 64, "num-steps": 100_000, "parameter-dim": 1_000_000, "shard-size": 1_000_000}
MOST_NUMBERS = 10_000_000
TIMEOUT_SECONDS = 60.0  # of any one wait
TRANSPORTS = ("shm", "tcp", "gloo")  # between processes


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    algorithms = [name for name, collectives in PAIRS.items() if "all_reduce" in collectives]
    parser.add_argument("--algorithm", choices=[*algorithms, PARAMETER_SERVER], required=True)
    parser.add_argument("--world-size", metavar="RANKS", type=at_least_one, default=4, help="default: 4")
    parser.add_argument(
        "--ranks-per-machine",
        metavar="RANKS",
        type=at_least_one,
        help="for hierarchical; default: all on one",
    )
    parser.add_argument("--num-steps", metavar="COUNT", type=at_least_one, default=6, help="default: 6")
    parser.add_argument(
        "--parameter-dim", metavar="COUNT", type=at_least_one, default=40, help="weights; default: 40"
    )
    parser.add_argument(
        "--shard-size", metavar="ROWS", type=at_least_one, default=16, help="of each rank; default: 16"
    )
    parser.add_argument("--transport", choices=TRANSPORTS, default="shm", help="default: shm")
    parser.add_argument("--seed", metavar="NUMBER", type=int, default=42, help="of the rows; default: 42")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(arguments: argparse.Namespace) -> int:
    """Run, print a row for each step; 1 where a step is not the serial one."""
    from lockstep.cli import output
    from lockstep.launchers import gather
    from lockstep.readiness import require_training

    require_training("collectives run")
    if arguments.ranks_per_machine and arguments.algorithm != "hierarchical":
        raise UsageError(ONLY_HIERARCHICAL)
    for option, most in MOST.items():
        found = getattr(arguments, option.replace("-", "_"))
        if found > most:
            raise UsageError(f"--{option}: found {found:,}, allowed: at most {most:,}")
    if arguments.world_size * arguments.shard_size * arguments.parameter_dim > MOST_NUMBERS:
        raise UsageError(
            f"--world-size times --shard-size times --parameter-dim: every rank holds all rows, and at most "
            f"{MOST_NUMBERS:,} numbers are allowed"
        )
    order = order_of(arguments)
    processes = arguments.world_size + (arguments.algorithm == PARAMETER_SERVER)
    limit = TIMEOUT_SECONDS * (arguments.num_steps + 1)
    seen = gather.gather("lockstep.engine.simulation:main", order, processes, limit)
    steps = judged(seen[: arguments.world_size])
    failed = [step for step in steps if not step["ok"]]
    if arguments.json:
        output.write_json({**order, "tolerance": TOLERANCE, "steps": steps, "ok": not failed})
    else:
        output.write_table(_table(steps))
        output.write_line(_verdict(order, steps, failed))
    return 1 if failed else 0


def order_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the processes are to do."""
    names = (
        "algorithm",
        "world_size",
        "ranks_per_machine",
        "num_steps",
        "parameter_dim",
        "shard_size",
        "transport",
        "seed",
    )
    return {name: getattr(arguments, name) for name in names} | {"timeout_seconds": TIMEOUT_SECONDS}


def judged(ranks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What all ranks saw of each step. It is right where all are near the serial result, with the same bits."""
    result = []
    for lines in zip(*ranks, strict=True):
        difference = max(line["difference"] for line in lines)
        same = len({line["weights"] for line in lines}) == 1
        result.append(
            {
                "step": lines[0]["step"],
                "loss": lines[0]["loss"],
                "difference": difference,
                "same_bits": same,
                "seconds": max(line["seconds"] for line in lines),
                "wire_bytes": [line["wire_bytes"] for line in lines],
                "ok": same and difference <= TOLERANCE,
            }
        )
    return result


def _table(steps: list[dict[str, Any]]) -> "Table":
    from lockstep.catalog.text import Table

    rows = [
        (
            str(step["step"]),
            f"{step['loss']:.8f}",
            f"{step['difference']:.1e}",
            f"{step['seconds'] * 1e6:,.0f}",
            f"{max(step['wire_bytes']):,}",
            "ok" if step["ok"] else "WRONG" if step["same_bits"] else "RANKS DIFFER",
        )
        for step in steps
    ]
    headings = ("step", "loss", "from serial", "us, slowest", "bytes sent, most", "check")
    return Table(rows, headings, frozenset({0, 1, 2, 3, 4}))


def _verdict(order: dict[str, Any], steps: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    who = f"{order['algorithm']} over {order['transport']}, {order['world_size']} ranks"
    who += " and a server" if order["algorithm"] == PARAMETER_SERVER else ""
    if failed:
        return f"{who}: {len(failed)} of {len(steps)} steps are not the serial ones, the first is {failed[0]['step']}"
    return f"{who}: each of {len(steps)} steps is the serial one to {TOLERANCE:g}, with the same bits on every rank"
