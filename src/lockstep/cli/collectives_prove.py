"""`lockstep collectives prove`: every algorithm, every world size, all ranks executed on symbols."""

import argparse
import sys
from typing import TYPE_CHECKING

from lockstep.cli.collectives import at_least_one
from lockstep.collectives.schedule import PAIRS

if TYPE_CHECKING:
    from lockstep.catalog.text import Table
    from lockstep.collectives.prove import Proof


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument(
        "--max-world-size", metavar="RANKS", type=at_least_one, default=64, help="default: 64"
    )
    parser.add_argument("--algorithm", choices=PAIRS, help="default: all of them")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(arguments: argparse.Namespace) -> int:
    """Prove, print what was shown; 1 if anything fails."""
    from lockstep.cli import output
    from lockstep.collectives.prove import prove_all

    algorithms = [arguments.algorithm] if arguments.algorithm else list(PAIRS)
    pairs: dict[tuple[str, str], list[Proof]] = {}
    for proof in prove_all(arguments.max_world_size, algorithms):
        pairs.setdefault((proof.algorithm, proof.collective), []).append(proof)
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{proof.algorithm} {proof.collective}, {proof.world_size} ranks")
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    failed = [proof for proofs in pairs.values() for proof in proofs if proof.failures]
    if arguments.json:
        output.write_json([_value(proof) for proofs in pairs.values() for proof in proofs])
    else:
        output.write_table(_table(pairs))
        output.write_line("* at the most ranks; sent by the busiest rank, in buffers of S bytes")
        for proof in failed[:20]:
            where = f"{proof.algorithm} {proof.collective}, {proof.world_size} ranks, {proof.ranks_per_machine} on each"
            output.write_line(f"failed: {where} machine: {proof.failures[0]}")
    return 1 if failed else 0


def _table(pairs: "dict[tuple[str, str], list[Proof]]") -> "Table":
    from lockstep.catalog.text import Table

    rows = []
    for (algorithm, collective), proofs in pairs.items():
        last, broken = proofs[-1], sum(bool(proof.failures) for proof in proofs)
        rows.append(
            (
                algorithm,
                collective,
                f"1 to {last.world_size}",
                str(len(proofs)),
                str(last.rounds),
                f"{float(last.sent):.3f} S",
                f"{broken} FAILED" if broken else "proven",
            )
        )
    headings = ("algorithm", "collective", "ranks", "proofs", "rounds*", "sent*", "result")
    return Table(rows, headings, frozenset({3, 4, 5}))


def _value(proof: "Proof") -> dict[str, object]:
    return {
        "algorithm": proof.algorithm,
        "collective": proof.collective,
        "world_size": proof.world_size,
        "ranks_per_machine": proof.ranks_per_machine,
        "rounds": proof.rounds,
        "sent_buffers": float(proof.sent),
        "failures": list(proof.failures),
    }
