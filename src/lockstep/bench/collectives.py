"""`lockstep collectives bench`: our all-reduce and gloo's own in turn, in one go, in the manner of nccl-tests.

Every round of measurement goes through all candidates, so that whatever else the machine does meets them alike.
A round's time is that of the slowest rank; the table shows the median and the least over the rounds. Beside it
stands what the cost model predicts from the transport's links, as they were measured just before.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lockstep import strict_json
from lockstep.collectives.schedule import PAIRS
from lockstep.collectives.topology import Link, Topology
from lockstep.errors import LockstepError, RunFailed, UsageError
from lockstep.launchers.client import Server, ended_on_exit
from lockstep.linux import cores
from lockstep.readiness import require_training

GLOO, COPIES = "gloo's own all_reduce", "copies alone"
UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
LIMIT_SECONDS = 60.0  # of any one wait inside
MOST_RANKS, MOST_ROUNDS, MOST_BYTES = 64, 10_000, 4 << 30


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    algorithms = [name for name, collectives in PAIRS.items() if "all_reduce" in collectives]
    parser.add_argument("--ranks", type=int, default=2, help="processes; default: 2")
    parser.add_argument(
        "--sizes", default="4KB,64KB,1MB,4MB,32MB", help="of the buffer, fp32; default: %(default)s"
    )
    parser.add_argument(
        "--transports", default="shm,tcp", help="default: %(default)s; also gloo, point to point"
    )
    parser.add_argument("--algorithms", default="direct,ring", help=f"of {', '.join(algorithms)}")
    parser.add_argument("--rounds", type=int, default=9, help="of measurement; default: 9")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table. Exit status 1 where a result is wrong."""
    order = order_of(arguments)
    result = measure(order)
    if arguments.json:
        sys.stdout.write(strict_json.encode(result, indent=2) + "\n")
    else:
        sys.stdout.write(table(result))
    return 0 if all(row["check"] == "ok" for row in result["rows"] if row["check"]) else 1


def order_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the ranks are to do. Raises UsageError."""
    for option, most in (("ranks", MOST_RANKS), ("rounds", MOST_ROUNDS)):
        if not 1 <= getattr(arguments, option) <= most:
            raise UsageError(f"--{option}: found {getattr(arguments, option)}, allowed: 1 to {most:,}")
    from lockstep import plugins  # and pydantic with it, which the help does not need

    known = [name for name in plugins.names("transports") if name != "queue"]  # joins threads, not processes
    pairs = [
        (transport, algorithm)
        for transport in _chosen("--transports", arguments.transports, known)
        for algorithm in _chosen("--algorithms", arguments.algorithms, list(PAIRS))
    ]
    for _, algorithm in pairs:
        if "all_reduce" not in PAIRS[algorithm]:
            raise UsageError(f"--algorithms: {algorithm} does no all_reduce")
    return {
        "ranks": arguments.ranks,
        "sizes": [size_of(word) for word in arguments.sizes.split(",")],
        "pairs": pairs,
        "rounds": arguments.rounds,
        "timeout_seconds": LIMIT_SECONDS,
    }


def _chosen(option: str, text: str, allowed: list[str]) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in allowed:
            raise UsageError(f"{option}: found {word!r}, allowed: {', '.join(allowed)}")
    return words


def size_of(word: str) -> int:
    """Bytes from 4096, 4KB, 1MB; whole fp32 numbers. Raises UsageError."""
    text = word.strip().upper()
    unit = next((unit for unit in ("KB", "MB", "GB", "B") if text.endswith(unit)), "")
    digits = text.removesuffix(unit)
    if not digits.isdecimal() or not int(digits) * UNITS.get(unit, 1):
        raise UsageError(f"--sizes: found {word!r}, allowed: whole numbers such as 4096, 4KB, 1MB")
    size = -(-int(digits) * UNITS.get(unit, 1) // 4) * 4
    if size > MOST_BYTES:
        raise UsageError(
            f"--sizes: found {word!r}, allowed: at most 4GB, which every rank holds several times"
        )
    return size


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Run the ranks, and put together what they saw."""
    require_training("the benchmark")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as name, ended_on_exit(Server()) as server:
        folder = Path(name)
        server.prepare("forkserver", Path.cwd())
        server.start("lockstep.bench.ranks:main", [str(folder), order], order["ranks"])
        _until_all_ended(server, folder)
        seen = [
            json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(order["ranks"])
        ]
    links = {name: median_link([rank["links"][name] for rank in seen]) for name in seen[0]["links"]}
    gamma = median(rank["gamma"] for rank in seen)
    return {
        "ranks": order["ranks"],
        "cores": cores(),
        "load": [load, os.getloadavg()[0]],
        "torch": seen[0]["torch"],
        "links": links,
        "gamma_seconds_per_byte": gamma,
        "rows": [_row(order, number, seen, links, gamma) for number in range(len(seen[0]["rows"]))],
    }


def median_link(links: list[list[float]]) -> dict[str, float]:
    """Alpha and beta over the ranks."""
    names = ("alpha_seconds", "beta_seconds_per_byte")
    return {name: median(link[number] for link in links) for number, name in enumerate(names)}


def _until_all_ended(server: Server, folder: Path) -> None:
    began = time.monotonic()
    while True:
        for message in server.poll(1.0):
            if message["event"] == "all_ended":
                return
            if message["event"] == "exit" and message["code"]:
                raise _failure(folder, message["index"], message["code"])
        if time.monotonic() - began > 60 * LIMIT_SECONDS:
            raise LockstepError("the ranks of the benchmark do not end")


def _failure(folder: Path, rank: int, code: int) -> LockstepError:
    time.sleep(0.2)  # the one where it began may still be writing
    for word in sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime):
        return RunFailed(word.read_text(encoding="utf-8"), rank=rank)
    return RunFailed(f"rank {rank} of the benchmark ended with {code}", "signal", rank)


def _row(
    order: dict[str, Any], number: int, seen: list[dict[str, Any]], links: dict[str, Any], gamma: float
) -> dict[str, Any]:
    """One candidate at one size, over all ranks."""
    rows = [rank["rows"][number] for rank in seen]
    slowest = [max(times) for times in zip(*(row["seconds"] for row in rows), strict=True)]
    first, ranks = rows[0], order["ranks"]
    seconds = median(slowest)
    algorithm_rate = first["bytes"] / seconds / 1e9
    check = ""
    if first["digest"]:
        same = len({digest for row in rows for digest in row["digest"]}) == 1
        check = "WRONG" if any(row["wrong"] for row in rows) else "ok" if same else "BITS DIFFER"
    predicted = None
    if first["algorithm"] and ranks > 1:
        from lockstep.collectives.cost import simulate  # and numpy

        link = Link(**links[first["name"].split(" on ")[1]])
        topology = Topology(ranks, ranks, link, link, gamma)
        predicted = simulate("all_reduce", first["algorithm"], first["bytes"], topology).seconds
    return {
        "bytes": first["bytes"],
        "name": first["name"],
        "seconds": seconds,
        "least_seconds": min(slowest),
        "predicted_seconds": predicted,
        "algbw_gb_per_second": algorithm_rate,
        "busbw_gb_per_second": algorithm_rate * 2 * (ranks - 1) / ranks,
        "wire_bytes": first["wire_bytes"],
        "check": check,
    }


def table(result: dict[str, Any]) -> str:
    """The rows for a person. ``gloo / ours`` above 1 means that ours is faster."""
    head = (
        "size",
        "all_reduce by",
        "time us",
        "least us",
        "predicted",
        "algbw",
        "busbw GB/s",
        "gloo / ours",
        "check",
    )
    form = "{:>9}  {:<24}{:>11}{:>11}{:>11}{:>8}{:>12}{:>13}  {}\n"
    text = f"{result['ranks']} ranks on {result['cores']} cores, torch {result['torch']}, load "
    text += " to ".join(f"{load:.1f}" for load in result["load"]) + "\n\n" + form.format(*head)
    stock = {row["bytes"]: row["seconds"] for row in result["rows"] if row["name"] == GLOO}
    for row in result["rows"]:
        ratio = stock[row["bytes"]] / row["seconds"]
        text += form.format(
            size_text(row["bytes"]),
            row["name"],
            f"{row['seconds'] * 1e6:,.1f}",
            f"{row['least_seconds'] * 1e6:,.1f}",
            f"{row['predicted_seconds'] * 1e6:,.1f}" if row["predicted_seconds"] else "",
            f"{row['algbw_gb_per_second']:.2f}",
            f"{row['busbw_gb_per_second']:.2f}",
            "" if row["name"] == GLOO else f"{ratio:.2f}",
            row["check"],
        )
    for name, link in result["links"].items():
        rate = 1e-9 / link["beta_seconds_per_byte"] if link["beta_seconds_per_byte"] else float("inf")
        text += f"\n{name}: alpha {link['alpha_seconds'] * 1e6:.1f} us, 1 / beta {rate:.2f} GB/s"
    adding = 1e-9 / result["gamma_seconds_per_byte"]
    text += f"\nadding: 1 / gamma {adding:.2f} GB/s\n"
    for name, link in result["links"].items():
        if name != "shm" and link["beta_seconds_per_byte"]:  # which reduces in place and is never chosen for
            text += (
                f"\nto let algorithm: auto choose by this machine's {name} (as parameters of allreduce):\n"
                f"  {{name: allreduce, transport: {name}, inside_alpha_us: {link['alpha_seconds'] * 1e6:.3g}, "
                f"inside_gb_per_second: {1e-9 / link['beta_seconds_per_byte']:.3g}, "
                f"add_gb_per_second: {adding:.3g}}}\n"
            )
    return text


def size_text(count: int) -> str:
    """4096 as 4 KB."""
    for unit in ("GB", "MB", "KB"):
        if count % UNITS[unit] == 0:
            return f"{count // UNITS[unit]} {unit}"
    return f"{count} B"


def main(words: list[str] | None = None) -> int:
    """The command by itself."""
    parser = argparse.ArgumentParser(prog="collectives bench", description=(__doc__ or "").split("\n")[0])
    configure(parser)
    try:
        return run(parser.parse_args(words))
    except LockstepError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
