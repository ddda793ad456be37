"""`lockstep collectives pipeline`: in which order the ranks of a pipeline compute, drawn and proven."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.cli.collectives import at_least_one
from lockstep.collectives.pipeline import NAMES
from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.collectives.pipeline import Schedule

MOST_ACTIONS = 20_000  # of all ranks: more is nothing to look at


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    parser.add_argument("--schedule", choices=NAMES, default="1f1b", help="default: 1f1b")
    parser.add_argument("--world-size", metavar="RANKS", type=at_least_one, default=4, help="default: 4")
    parser.add_argument("--micro-batches", metavar="COUNT", type=at_least_one, default=8, help="default: 8")
    parser.add_argument(
        "--stages-per-rank", metavar="COUNT", type=at_least_one, help="default: as the schedule needs"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="write a drawing instead of printing rows")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(arguments: argparse.Namespace) -> int:
    """Print or draw the rows, with what was proven of them; 1 if anything is wrong with them."""
    from lockstep import files
    from lockstep.cli import output
    from lockstep.collectives import pipeline, pipeline_draw, pipeline_prove

    fixed = pipeline.FIXED_STAGES.get(arguments.schedule)
    if fixed and arguments.stages_per_rank not in (None, fixed):
        raise UsageError(
            f"--stages-per-rank: found {arguments.stages_per_rank}, allowed with {arguments.schedule}: {fixed}"
        )
    turns = arguments.stages_per_rank or fixed or (2 if arguments.schedule == "interleaved" else 1)
    if arguments.world_size * arguments.micro_batches * turns > MOST_ACTIONS:
        raise UsageError(
            f"ranks x micro-batches x stages per rank: found more than {MOST_ACTIONS:,}, allowed: up to that"
        )
    wanted = (arguments.schedule, arguments.world_size, arguments.micro_batches, turns)
    schedule, proof = pipeline.make(*wanted), pipeline_prove.prove(*wanted)
    if arguments.svg:
        files.write_atomically(arguments.svg, pipeline_draw.as_svg(schedule))
    if arguments.json:
        output.write_json(_value(schedule, proof.failures))
    else:
        if not arguments.svg:
            output.write_line(pipeline_draw.as_text(schedule))
        classic = pipeline.classic_bubble(schedule.ranks, schedule.micro_batches)
        output.write_line(
            f"{schedule.units} units, idle {schedule.idle_share:.1%}; (p-1)/(m+p-1) is {classic:.1%}; "
            f"a rank keeps up to {proof.kept} activations"
        )
        for failure in proof.failures[:20]:
            output.write_line(f"failed: {failure}")
        if not proof.failures:
            output.write_line("proven: every pass once, nothing before what it needs, no rank waits for ever")
    return 1 if proof.failures else 0


def _value(schedule: "Schedule", failures: tuple[str, ...]) -> dict[str, object]:
    return {
        "schedule": schedule.name,
        "micro_batches": schedule.micro_batches,
        "placement": list(schedule.placement),
        "units": schedule.units,
        "idle_share": schedule.idle_share,
        "activations_kept": [schedule.kept(rank) for rank in range(schedule.ranks)],
        "rows": [
            [{"start": a.start, "kind": a.kind, "stage": a.stage, "micro_batch": a.micro_batch} for a in row]
            for row in schedule.rows
        ],
        "failures": list(failures),
    }
