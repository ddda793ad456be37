"""Shows that a pipeline schedule is right, by looking at every action of every rank.

Two clocks are used. On the schedule's own one, with passes of one unit, nothing may start before what it needs is
there. And without any clock, each rank doing its row in order and waiting for what it needs, all rows must come to
their end: then no rank waits for ever, however long passes really take.
"""

import itertools
from collections import Counter
from dataclasses import dataclass

from lockstep.collectives.pipeline import UNITS, Action, Schedule, classic_bubble, make

Done = tuple[str, int, int]


@dataclass(frozen=True)
class Proof:
    """What was shown of one schedule. No ``failures`` means that all of it holds."""

    name: str
    ranks: int
    micro_batches: int
    stages_per_rank: int
    units: int
    idle_share: float
    kept: int
    """The most activations that any rank keeps at once, of one stage and micro-batch each."""
    failures: tuple[str, ...]


def prove(name: str, ranks: int, micro_batches: int, stages_per_rank: int = 1) -> Proof:
    """Make the schedule, and check it against the rules and against what is claimed for it."""
    schedule = make(name, ranks, micro_batches, stages_per_rank)
    failures = failures_of(schedule) or broken_claims(schedule, stages_per_rank)
    most = max(schedule.kept(rank) for rank in range(ranks))
    return Proof(
        name,
        ranks,
        micro_batches,
        stages_per_rank,
        schedule.units,
        schedule.idle_share,
        most,
        tuple(failures),
    )


def failures_of(schedule: Schedule) -> list[str]:
    """Every rule that the rows break, in words."""
    return _miscounted(schedule) or _overlaps(schedule) + _too_early(schedule) or _stuck(schedule)


def _miscounted(schedule: Schedule) -> list[str]:
    """Each stage does each micro-batch once, on its own rank, forward and backward (whole, or both halves)."""
    failures = []
    stages, numbers = range(len(schedule.placement)), range(schedule.micro_batches)
    seen: Counter[Done] = Counter((a.kind, a.stage, a.micro_batch) for row in schedule.rows for a in row)
    for stage in stages:
        for number in numbers:
            counts = [seen.pop((kind, stage, number), 0) for kind in "FBIW"]
            if counts not in ([1, 1, 0, 0], [1, 0, 1, 1]):
                failures.append(
                    f"stage {stage} does micro-batch {number} {counts[0]} times forward, {counts[1]} times backward, "
                    f"and {counts[2]} and {counts[3]} times the halves of it"
                )
    failures += [f"there is no {kind} of stage {stage}, micro-batch {number}" for kind, stage, number in seen]
    for rank, row in enumerate(schedule.rows):
        strange = {a.stage for a in row if a.stage in stages and schedule.placement[a.stage] != rank}
        failures += [f"rank {rank} works on stage {stage}, which is not its own" for stage in sorted(strange)]
    return failures


def _overlaps(schedule: Schedule) -> list[str]:
    early = [
        f"{describe(action)} starts before 0" for row in schedule.rows for action in row if action.start < 0
    ]
    return early + [
        f"rank {rank} starts {describe(later)} at {later.start}, before {describe(earlier)} is over"
        for rank, row in enumerate(schedule.rows)
        for earlier, later in itertools.pairwise(row)
        if later.start < earlier.stop
    ]


def _too_early(schedule: Schedule) -> list[str]:
    ends: dict[Done, int] = {}
    for row in schedule.rows:
        for action in row:
            ends |= dict.fromkeys(products(action), action.stop)
    return [
        f"{describe(action)} starts at {action.start}, and what it needs is there at {ends[need]}"
        for row in schedule.rows
        for action in row
        for need in needs(action, len(schedule.placement) - 1)
        if ends[need] > action.start
    ]


def _stuck(schedule: Schedule) -> list[str]:
    """Do the rows in order, without times."""
    done: set[Done] = set()
    waiting = [list(row[::-1]) for row in schedule.rows]
    last = len(schedule.placement) - 1
    moved = True
    while moved:
        moved = False
        for row in waiting:
            while row and all(need in done for need in needs(row[-1], last)):
                done |= set(products(row.pop()))
                moved = True
    return [
        f"rank {rank} waits for ever to start {describe(row[-1])}" for rank, row in enumerate(waiting) if row
    ]


def needs(action: Action, last: int) -> list[Done]:
    """What must be over before an action can start."""
    stage, number = action.stage, action.micro_batch
    if action.kind == "F":
        return [("F", stage - 1, number)] if stage else []
    if action.kind == "W":
        return [("I", stage, number)]
    return [("F", stage, number)] + ([("I", stage + 1, number)] if stage < last else [])


def products(action: Action) -> list[Done]:
    """What is there when it is over; a whole backward pass leaves the gradient of the input as well."""
    kinds = {"B": ("I", "W")}.get(action.kind, (action.kind,))
    return [(kind, action.stage, action.micro_batch) for kind in kinds]


def describe(action: Action) -> str:
    """F of stage 2, micro-batch 0."""
    return f"{action.kind} of stage {action.stage}, micro-batch {action.micro_batch}"


def broken_claims(schedule: Schedule, stages_per_rank: int) -> list[str]:
    """Where a schedule is longer, or keeps more, than is said of it."""
    p, m, v = schedule.ranks, schedule.micro_batches, stages_per_rank
    work = v * m * (UNITS["F"] + UNITS["I"] + UNITS["W"])
    broken = []
    if schedule.name in ("gpipe", "1f1b"):
        if abs(schedule.idle_share - classic_bubble(p, m)) > 1e-12:
            broken.append(f"idle share {schedule.idle_share:.4f}, claimed {classic_bubble(p, m):.4f}")
        for rank in range(p):
            most = m if schedule.name == "gpipe" else min(m, p - rank)
            if schedule.kept(rank) != most:
                broken.append(f"rank {rank} keeps {schedule.kept(rank)} activations, claimed {most}")
    elif schedule.name == "interleaved" and v > 1 and m % p == 0 and schedule.units != work + 3 * (p - 1):
        broken.append(f"{schedule.units} units, claimed {work + 3 * (p - 1)}: a bubble {v} times as short")
    elif schedule.name == "zero_bubble" and m % p == 0 and m >= p and schedule.units != work + p - 1:
        broken.append(
            f"{schedule.units} units, claimed {work + p - 1}: the time to reach the last rank, once"
        )
    if schedule.name == "zero_bubble" and v == 1 and max(map(schedule.kept, range(p))) > min(m, p):
        broken.append(f"keeps more than 1f1b's {min(m, p)} activations")
    if schedule.name == "zero_bubble_v" and max(map(schedule.kept, range(p))) > 2 * p:
        broken.append(f"keeps more activations of half a rank's size than {2 * p}")
    return broken
