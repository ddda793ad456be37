"""Shows that schedules are right, by executing all ranks at once on symbols instead of numbers.

A chunk holds the set of the ranks whose contribution is in it, or nothing. Adding two sets that share a rank
would count that rank twice and is reported where it happens, so a set is enough: what is in a chunk at the end
is there exactly once. Sets are integers, rank r being bit r.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lockstep.collectives.schedule import PAIRS, ClosedForm, Round, Schedule, closed_form, make
from lockstep.collectives.topology import Topology

Held = list[
    list[int | None]
]  # [rank][chunk]: whose contributions are in it, a bit for each; None = nothing yet


@dataclass(frozen=True)
class Proof:
    """What was shown for one algorithm, collective and world. No ``failures`` means that all of it holds."""

    collective: str
    algorithm: str
    world_size: int
    ranks_per_machine: int
    rounds: int
    sent: Fraction
    """The most that any rank sends, as a share of the buffer."""
    failures: tuple[str, ...]


GROUP_SIZES = (1, 2, 3, 4, 8)
"""How many ranks stand on a machine in the proofs of algorithms that look at the topology."""


def prove_all(max_world_size: int, algorithms: Iterable[str] = PAIRS) -> Iterator[Proof]:
    """A proof of every pair of algorithm and collective for every world size from 1 to the given one."""
    for algorithm in algorithms:
        for collective in PAIRS[algorithm]:
            for world_size in range(1, max_world_size + 1):
                sizes = GROUP_SIZES if algorithm == "hierarchical" else (world_size,)
                for ranks_per_machine in sizes:
                    yield prove(collective, algorithm, Topology(world_size, ranks_per_machine))


def prove(collective: str, algorithm: str, topology: Topology) -> Proof:
    """Make the schedules of all ranks, and check them against the rules and the algorithm's own claims."""
    size = topology.world_size
    schedules = [make(collective, algorithm, rank, size, topology) for rank in range(size)]
    claims = [closed_form(collective, algorithm, rank, size, topology) for rank in range(size)]
    failures = failures_of(schedules, claims)
    most = max(claim.sent for claim in claims)
    return Proof(
        collective, algorithm, size, topology.ranks_per_machine, claims[0].rounds, most, tuple(failures)
    )


def failures_of(schedules: Sequence[Schedule], claims: Sequence[ClosedForm] = ()) -> list[str]:
    """Every rule that the schedules of all ranks break, in words; without claims the counts go unchecked."""
    counts = {len(schedule.rounds) for schedule in schedules}
    if len(counts) != 1 or len({schedule.chunks for schedule in schedules}) != 1:
        return ["ranks disagree on the number of rounds or of chunks"]
    if claims and len(claims) != len(schedules):
        return [f"there are {len(claims)} claims for {len(schedules)} ranks"]
    if broken := _phases(schedules):
        return broken
    failures: list[str] = []
    held = _start(schedules)
    sent, received = [0] * len(schedules), [0] * len(schedules)
    previous: list[Round] = []
    firsts = _phase_starts(schedules[0])
    for number in range(counts.pop()):
        rounds = [schedule.rounds[number] for schedule in schedules]
        broken = _well_formed(rounds, schedules[0].chunks) or _unmatched(rounds)
        if broken:
            return failures + [f"round {number + 1}: {reason}" for reason in broken]
        failures += [f"round {number + 1}: {reason}" for reason in _execute(rounds, held)]
        if number not in firsts and _shape(rounds) != _shape(previous):
            failures.append(f"round {number + 1} is declared to look like the one before, and does not")
        if number in firsts and firsts[number] and not _everyone(rounds):
            failures.append(f"round {number + 1} is declared to be between everyone, and is not")
        for rank, transfers in enumerate(rounds):
            sent[rank] += sum(len(each.chunks) for each in transfers if each.kind == "send")
            received[rank] += sum(len(each.chunks) for each in transfers if each.kind != "send")
        previous = rounds
    return failures + _postcondition(schedules[0], held) + _claims(schedules, claims, sent, received)


def _start(schedules: Sequence[Schedule]) -> Held:
    collective, chunks = schedules[0].collective, schedules[0].chunks
    if collective == "all_gather":
        return [
            [1 << rank if chunk == rank else None for chunk in range(chunks)]
            for rank in range(len(schedules))
        ]
    if collective == "broadcast":
        return [[1 if rank == 0 else None] * chunks for rank in range(len(schedules))]
    return [[1 << rank] * chunks for rank in range(len(schedules))]


def _well_formed(rounds: list[Round], chunks: int) -> list[str]:
    """Peers and chunks that exist, and no chunk that is both read and written, or written by two rules."""
    failures = []
    size = len(rounds)
    for rank, transfers in enumerate(rounds):
        touched = {"send": 0, "receive": 0, "receive_reduce": 0}  # chunks, a bit for each
        for each in transfers:
            if not 0 <= each.peer < size or each.peer == rank:
                failures.append(f"rank {rank} names the peer {each.peer}")
            start, stop = each.chunks.start, each.chunks.stop
            if each.chunks.step != 1 or not 0 <= start < stop <= chunks:
                failures.append(f"rank {rank} names the chunks {each.chunks} of {chunks}")
                continue
            mask = (1 << stop) - (1 << start)
            if each.kind == "receive" and touched["receive"] & mask:
                failures.append(f"rank {rank} receives chunk {_lowest(touched['receive'] & mask)} twice")
            touched[each.kind] |= mask
        if both := touched["send"] & (touched["receive"] | touched["receive_reduce"]):
            failures.append(f"rank {rank} sends and writes chunk {_lowest(both)}")
        if both := touched["receive"] & touched["receive_reduce"]:
            failures.append(f"rank {rank} copies and adds into chunk {_lowest(both)}")
    return failures


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _unmatched(rounds: list[Round]) -> list[str]:
    """Sends without their receive, or the reverse; messages of one pair of ranks match in their order."""
    sends: dict[tuple[int, int], list[range]] = {}
    receives: dict[tuple[int, int], list[range]] = {}
    for rank, transfers in enumerate(rounds):
        for each in transfers:
            if each.kind == "send":
                sends.setdefault((rank, each.peer), []).append(each.chunks)
            else:
                receives.setdefault((each.peer, rank), []).append(each.chunks)
    return [
        f"rank {pair[0]} sends to rank {pair[1]} the chunks {sends.get(pair, [])}, "
        f"which receives {receives.get(pair, [])}"
        for pair in sorted(sends.keys() | receives.keys())
        if sends.get(pair) != receives.get(pair)
    ]


def _execute(rounds: list[Round], held: Held) -> list[str]:
    """One round of all ranks. Reading before writing needs no copy: no chunk that is sent is written."""
    failures = []
    for rank, transfers in enumerate(rounds):
        mine = held[rank]
        for each in transfers:
            if each.kind == "send":
                continue
            for chunk in each.chunks:
                arriving, present = held[each.peer][chunk], mine[chunk]
                if arriving is None or (each.kind == "receive_reduce" and present is None):
                    failures.append(
                        f"rank {rank} gets chunk {chunk} from rank {each.peer}, where one holds nothing"
                    )
                elif each.kind == "receive" or present is None:
                    mine[chunk] = arriving
                elif arriving & present:
                    twice = _lowest(arriving & present)
                    failures.append(f"rank {rank} adds rank {twice}'s contribution to chunk {chunk} twice")
                else:
                    mine[chunk] = arriving | present
    return failures


def _postcondition(first: Schedule, held: Held) -> list[str]:
    """Each chunk that the collective promises holds exactly the contributions that it should."""
    everyone = (1 << len(held)) - 1
    failures = []
    for rank, chunks in enumerate(held):
        for chunk, present in enumerate(chunks):
            expected = {"all_gather": 1 << chunk, "broadcast": 1}.get(first.collective, everyone)
            if first.collective == "reduce_scatter" and chunk != rank:
                continue
            if present != expected:
                missing = [bit for bit in range(len(held)) if (expected & ~(present or 0)) >> bit & 1]
                failures.append(
                    f"at the end rank {rank}'s chunk {chunk} lacks the contributions of {missing}"
                )
    return failures


def _claims(
    schedules: Sequence[Schedule], claims: Sequence[ClosedForm], sent: list[int], received: list[int]
) -> list[str]:
    failures = []
    for schedule, claim in zip(schedules, claims, strict=bool(claims)):
        rank, chunks = schedule.rank, schedule.chunks
        found = ClosedForm(
            len(schedule.rounds), Fraction(sent[rank], chunks), Fraction(received[rank], chunks)
        )
        if found != claim:
            failures.append(f"rank {rank}: the closed form says {claim}, the schedule has {found}")
    return failures


def _phases(schedules: Sequence[Schedule]) -> list[str]:
    """Phases are what the cost is counted by: the same for all ranks, and as long as the rounds are."""
    first = schedules[0]
    failures = [
        f"rank {schedule.rank} declares other phases than rank {first.rank}"
        for schedule in schedules
        if schedule.phases != first.phases
    ]
    declared = sum(phase.rounds for phase in first.phases)
    if first.phases and (declared != len(first.rounds) or any(phase.rounds < 1 for phase in first.phases)):
        failures.append(f"phases of {declared} rounds are declared, and there are {len(first.rounds)}")
    return failures


def _phase_starts(schedule: Schedule) -> dict[int, bool]:
    """The rounds that begin a phase, and whether it is one between everyone."""
    if not schedule.phases:
        return dict.fromkeys(range(len(schedule.rounds)), False)
    starts, at = {}, 0
    for phase in schedule.phases:
        starts[at] = phase.everyone
        at += phase.rounds
    return starts


def _shape(rounds: list[Round]) -> list[list[tuple[int, str, int]]]:
    return [[(each.peer, each.kind, len(each.chunks)) for each in transfers] for transfers in rounds]


def _everyone(rounds: list[Round]) -> bool:
    lengths = {len(each.chunks) for transfers in rounds for each in transfers}
    return len(lengths) == 1 and all(
        sorted(each.peer for each in transfers if each.kind == "send")
        == [peer for peer in range(len(rounds)) if peer != rank]
        for rank, transfers in enumerate(rounds)
    )
