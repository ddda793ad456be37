"""Within each machine first, between machines next, within again: the slow links carry the least.

All-reduce in three steps, with every rank of a machine busy between machines, as in Cho et al., "BlueConnect:
decomposing all-reduce for deep learning on heterogeneous network hierarchy", 2019, which has rings at every level:

1. a ring reduce_scatter within each machine leaves every rank a share of the machine's sum;
2. ranks that hold the same share on the machines all-reduce it by recursive halving and doubling;
3. a ring all_gather within each machine spreads the result.

The buffer is cut into k lanes (k = the most ranks on a machine) of M chunks (M = machines). Lane l is reduced
between the ranks that hold it; a machine with fewer than k ranks gives some of its ranks several lanes.

With N ranks, k on each machine, M = N/k machines, L = ceil(log2 M), and a buffer of S bytes:

==========  ====================  ===================================================================
collective  rounds                sent by a rank
==========  ====================  ===================================================================
all_reduce  2 (k - 1) + 2 L       2 (k-1)/k S within the machine, and between machines 2 (M-1)/M S/k
                                  if M is a power of two (otherwise as halving_doubling has it)
==========  ====================  ===================================================================
"""

import functools
from collections.abc import Callable
from fractions import Fraction

from lockstep.collectives import halving_doubling, ring
from lockstep.collectives.schedule import ClosedForm, Phase, Round, Rounds, Schedule, Transfer
from lockstep.collectives.topology import Topology


def schedule(collective: str, rank: int, topology: Topology) -> Schedule:
    """One rank's rounds. The buffer has a chunk for each lane and machine."""
    size, machines = topology.world_size, topology.machines
    lanes = len(topology.ranks_of(0))
    levels = halving_doubling.depth(machines)
    within, between = lanes - 1, 2 * levels

    def compute(number: int) -> Round:
        if number < within:
            return _within(rank, topology, number, ring.reduce_scatter_round)
        if number < within + between:
            return _between(rank, topology, number - within)
        return _within(rank, topology, number - within - between, ring.all_gather_round)

    count = 2 * within + between
    inner = _inner_phases(topology)
    phases = (*inner, *[Phase(1)] * between, *inner)
    return Schedule(collective, "hierarchical", size, rank, lanes * machines, Rounds(count, compute), phases)


def _inner_phases(topology: Topology) -> tuple[Phase, ...]:
    """The rounds of a ring look alike, unless a smaller last machine deals its lanes out unevenly."""
    rounds = len(topology.ranks_of(0)) - 1
    if rounds and len(topology.ranks_of(topology.machines - 1)) == rounds + 1:
        return (Phase(rounds),)
    return (Phase(1),) * rounds


def _within(
    rank: int, topology: Topology, number: int, ring_round: Callable[[int, int, int], Round]
) -> Round:
    """A round of the ring of one machine, whose pieces are the lanes that its ranks hold."""
    group = topology.ranks_of(topology.machine_of(rank))
    if number >= len(group) - 1:
        return ()  # a smaller machine is done before the others
    transfers = []
    for each in ring_round(rank - group.start, len(group), number):
        lanes = _lanes(each.chunks.start, len(group), topology)
        chunks = range(lanes.start * topology.machines, lanes.stop * topology.machines)
        transfers.append(Transfer(group[each.peer], chunks, each.kind))
    return tuple(transfers)


def _between(rank: int, topology: Topology, number: int) -> Round:
    """A round of halving and doubling between the machines, for each lane that the rank holds."""
    machine, machines = topology.machine_of(rank), topology.machines
    inner = _between_machines(machine, machines, number)
    group = topology.ranks_of(machine)
    transfers = []
    for lane in _lanes(rank - group.start, len(group), topology):
        first = lane * machines
        for each in inner:
            chunks = range(first + each.chunks.start, first + each.chunks.stop)
            transfers.append(Transfer(_holder(lane, each.peer, topology), chunks, each.kind))
    return tuple(transfers)


@functools.lru_cache(maxsize=64)  # the ranks of a machine ask for the same in turn
def _between_machines(machine: int, machines: int, number: int) -> Round:
    levels = halving_doubling.depth(machines)
    if number < levels:
        return halving_doubling.halving_round(machine, machines, number)
    return halving_doubling.doubling_round(machine, machines, number - levels)


def _lanes(index: int, members: int, topology: Topology) -> range:
    """The lanes that the ``index``-th rank of a machine of so many ranks holds."""
    lanes = len(topology.ranks_of(0))
    return range(lanes * index // members, lanes * (index + 1) // members)


def _holder(lane: int, machine: int, topology: Topology) -> int:
    """The rank of a machine that holds a lane: the inverse of ``_lanes``."""
    group = topology.ranks_of(machine)
    return group[((lane + 1) * len(group) - 1) // len(topology.ranks_of(0))]


def closed_form(collective: str, rank: int, topology: Topology) -> ClosedForm:
    """The table above, for one rank; on a smaller last machine with the lanes as they are dealt there."""
    assert collective == "all_reduce", collective
    machine, machines = topology.machine_of(rank), topology.machines
    group, lanes = topology.ranks_of(machine), len(topology.ranks_of(0))
    between = halving_doubling.closed_form("all_reduce", machine, Topology.one_machine(machines))

    def held(index: int) -> int:
        return len(_lanes(index % len(group), len(group), topology))

    own = held(rank - group.start)
    before, after = held(rank - group.start - 1), held(rank - group.start + 1)
    return ClosedForm(
        2 * (lanes - 1) + between.rounds,
        (2 * lanes - own - after + own * between.sent) / Fraction(lanes),
        (2 * lanes - own - before + own * between.received) / Fraction(lanes),
    )
