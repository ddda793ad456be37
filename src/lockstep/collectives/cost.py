"""What a collective would take on a cluster: the alpha-beta-gamma model, run over the same schedules.

Every rank has a clock. In each round

- a rank's sends leave one after another, each taking ``alpha + bytes * beta`` of its link;
- its receives arrive one after another, at the same time as its sends leave (full duplex), and not before
  every one of their senders has begun the round;
- then it adds what it received to be added, at ``gamma`` a byte; the round is over for this rank when its own
  sends, receives and additions are.

So nobody waits for ranks that it does not talk to. Chunks count as equal parts of the buffer, however small.
Links do not slow each other down: a rank has a port of its own, as a GPU with its own network card has.

Rounds that a schedule declares alike (``Phase``; ``prove`` checks it) are read once and repeated, and once all
clocks advance alike the rest of a phase is a multiplication: so 16,384 ranks take seconds.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockstep.collectives.schedule import PAIRS, Phase, Round, Schedule, make
from lockstep.collectives.topology import Topology
from lockstep.errors import UsageError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_DIRECT_RANKS = 512
"""``choose`` leaves direct out above this: it needs a connection from every rank to every other."""

MOST_ROUNDS_READ = 4_000_000
"""Rounds of single ranks that a simulation reads before it refuses: about half a minute."""


@dataclass(frozen=True)
class Cost:
    """The outcome for one collective. ``messages`` and ``bytes_sent`` are each those of the busiest rank."""

    collective: str
    algorithm: str
    world_size: int
    payload_bytes: int
    rounds: int
    messages: int
    bytes_sent: float
    seconds: float


@dataclass(frozen=True)
class Pattern:
    """A round of all ranks, as arrays of shape (world_size,)."""

    out_seconds: Floats
    in_seconds: Floats
    add_seconds: Floats
    sent_bytes: Floats
    messages: Integers
    senders: Sequence[tuple[Integers, Integers]] | None
    """Pairs of (receivers, their senders), no receiver twice in one pair; None: everyone hears everyone."""

    def advance(self, clocks: Floats) -> Floats:
        """The ranks' clocks after the round, from those before it."""
        if self.senders is None:
            begin = np.full_like(clocks, clocks.max())
        else:
            begin = clocks.copy()
            for receivers, senders in self.senders:
                begin[receivers] = np.maximum(begin[receivers], clocks[senders])
        return np.maximum(clocks + self.out_seconds, begin + self.in_seconds) + self.add_seconds


def simulate(collective: str, algorithm: str, payload_bytes: int, topology: Topology, **options: int) -> Cost:
    """Run the schedules of all ranks against the clock; ``options`` are those of ``make``.

    Raises UsageError for a pair that does not exist, and for one whose rounds are too many to read.
    """
    size = topology.world_size
    first = make(collective, algorithm, 0, size, topology, **options)
    phases = first.phases or (Phase(1),) * len(first.rounds)
    if sum(not phase.everyone for phase in phases) * size > MOST_ROUNDS_READ:
        raise UsageError(
            f"{collective} by {algorithm} on {size:,} ranks has {len(first.rounds):,} rounds, no two alike: "
            f"too many to simulate; take fewer ranks or another algorithm"
        )
    every = range(size) if any(not phase.everyone for phase in phases) else range(1)
    schedules = [make(collective, algorithm, rank, size, topology, **options) for rank in every]
    clocks, sent, messages = np.zeros(size), np.zeros(size), np.zeros(size, np.int64)
    at = 0
    for phase in phases:
        if phase.everyone:
            pattern = _between_everyone(schedules[0], at, payload_bytes, topology)
        else:
            pattern = _pattern(
                [schedule.rounds[at] for schedule in schedules], first, payload_bytes, topology
            )
        clocks = _repeated(pattern, clocks, phase.rounds)
        sent += pattern.sent_bytes * phase.rounds
        messages += pattern.messages * phase.rounds
        at += phase.rounds
    return Cost(
        collective,
        algorithm,
        size,
        payload_bytes,
        len(first.rounds),
        int(messages.max()),
        float(sent.max()),
        float(clocks.max()),
    )


def _repeated(pattern: Pattern, clocks: Floats, rounds: int) -> Floats:
    """Advance through rounds that look alike; as soon as all clocks advance alike, by multiplication."""
    for done in range(1, rounds + 1):
        after = pattern.advance(clocks)
        gained = after - clocks
        if gained.max() - gained.min() <= 1e-9 * gained.max():
            return after + gained * (rounds - done)
        clocks = after
    return clocks


def _pattern(rounds: Sequence[Round], first: Schedule, payload_bytes: int, topology: Topology) -> Pattern:
    chunk_bytes = payload_bytes / first.chunks
    sends, receives, reduced = _table(rounds)
    size, k = topology.world_size, topology.ranks_per_machine
    arrays = {name: np.zeros(size) for name in ("out", "in", "add", "sent")}
    for name, table in (("out", sends), ("in", receives)):
        ranks, peers, lengths = table
        inside = ranks // k == peers // k
        alphas = np.where(inside, topology.inside.alpha_seconds, topology.between.alpha_seconds)
        betas = np.where(
            inside, topology.inside.beta_seconds_per_byte, topology.between.beta_seconds_per_byte
        )
        np.add.at(arrays[name], ranks, alphas + betas * lengths * chunk_bytes)
    np.add.at(arrays["sent"], sends[0], sends[2] * chunk_bytes)
    added = receives[2] * reduced * chunk_bytes * topology.gamma_seconds_per_byte
    np.add.at(arrays["add"], receives[0], added)
    return Pattern(
        arrays["out"],
        arrays["in"],
        arrays["add"],
        arrays["sent"],
        np.bincount(sends[0], minlength=size),
        _layers(receives[0], receives[1]),
    )


def _table(rounds: Sequence[Round]) -> tuple[Integers, Integers, Integers]:
    """Sends and receives of all ranks, each as rows (ranks, peers, chunks), and which receives are added."""
    sends: list[tuple[int, int, int]] = []
    receives: list[tuple[int, int, int]] = []
    reduced: list[int] = []
    for rank, transfers in enumerate(rounds):
        for each in transfers:
            row = (rank, each.peer, len(each.chunks))
            if each.kind == "send":
                sends.append(row)
            else:
                receives.append(row)
                reduced.append(each.kind == "receive_reduce")
    return (
        np.array(sends, np.int64).reshape(-1, 3).T,
        np.array(receives, np.int64).reshape(-1, 3).T,
        np.array(reduced, np.int64),
    )


def _layers(receivers: Integers, senders: Integers) -> list[tuple[Integers, Integers]]:
    """Each rank's first sender, then each rank's second, and so on: indices that are unique within a layer.

    ``receivers`` is in ascending order, as the table is made rank by rank.
    """
    nth = np.arange(len(receivers)) - np.searchsorted(receivers, receivers)
    return [(receivers[nth == layer], senders[nth == layer]) for layer in range(int(nth.max(initial=-1)) + 1)]


def _between_everyone(schedule: Schedule, number: int, payload_bytes: int, topology: Topology) -> Pattern:
    """The pattern of a round in which every rank sends the like to every other, from one rank's."""
    some = next(each for each in schedule.rounds[number] if each.kind != "send")
    size = topology.world_size
    message_bytes = payload_bytes * len(some.chunks) / schedule.chunks
    machine_sizes = np.array([len(topology.ranks_of(topology.machine_of(rank))) for rank in range(size)])
    seconds = (machine_sizes - 1) * topology.inside.seconds(message_bytes)
    seconds = seconds + (size - machine_sizes) * topology.between.seconds(message_bytes)
    gamma = topology.gamma_seconds_per_byte if some.kind == "receive_reduce" else 0.0
    return Pattern(
        seconds,
        seconds,
        np.full(size, gamma * message_bytes * (size - 1)),
        np.full(size, message_bytes * (size - 1)),
        np.full(size, size - 1),
        None,
    )


def choose(collective: str, payload_bytes: int, topology: Topology) -> tuple[str, str]:
    """The algorithm that the model expects to be fastest, and the reason in words. The same on every rank."""
    if topology.world_size == 1:
        return "direct", "one rank has nothing to send"
    costs = []
    for algorithm, collectives in PAIRS.items():
        if collective in collectives and _sensible(collective, algorithm, topology):
            with contextlib.suppress(UsageError):  # too many rounds to read: not a candidate here
                costs.append(simulate(collective, algorithm, payload_bytes, topology))
    if not costs:
        raise UsageError(f"{collective} on {topology.world_size:,} ranks: too many to simulate any algorithm")
    costs.sort(key=preference)
    best, *others = costs
    reason = (
        f"{best.algorithm} is expected to take {in_seconds(best.seconds)} for {in_bytes(payload_bytes)} on "
        f"{topology.world_size:,} ranks of {topology.machines:,} machine{'s' * (topology.machines > 1)}"
    )
    compared = ", ".join(f"{cost.algorithm} {in_seconds(cost.seconds)}" for cost in others)
    return best.algorithm, f"{reason}; {compared}" if compared else reason


def preference(cost: Cost) -> tuple[float, int, bool]:
    """The key to sort costs by, best first.

    Equal up to rounding counts as equal: then fewer rounds win, as a round is also a chance to wait; then
    direct, for which a transport may have a way of its own.
    """
    return float(f"{cost.seconds:.6g}"), cost.rounds, cost.algorithm != "direct"


def _sensible(collective: str, algorithm: str, topology: Topology) -> bool:
    """Whether an algorithm is a candidate: each exclusion is one that no measurement would overturn."""
    if algorithm == "direct":
        return topology.world_size <= MOST_DIRECT_RANKS
    if algorithm == "hierarchical":
        return topology.machines > 1 and topology.ranks_per_machine > 1
    return not (algorithm == "ring" and collective == "broadcast" and topology.world_size > MOST_DIRECT_RANKS)


def in_seconds(seconds: float) -> str:
    """Three digits and a unit: 1.23 ms."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * factor:
            return (
                f"{seconds / factor:,.3g} {unit}"
                if seconds < 999.5 * factor
                else f"{seconds / factor:,.0f} {unit}"
            )
    return f"{seconds * 1e9:.3g} ns"


def in_bytes(count: float) -> str:
    """Three digits and a decimal unit: 400 MB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= 0.9995 * factor:
            return f"{count / factor:,.4g} {unit}"
    return f"{count:.4g} B"
