"""Recursive halving (reduce_scatter), recursive doubling back (all_gather), and one after the other (all_reduce).

Rabenseifner, "Optimization of collective reduction operations", 2004; Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH", 2005.

A group of ranks halves itself, each half keeping half of the chunks and sending the other half's away; so on
in each half until every rank is alone with its own chunk. For powers of two this is the algorithm of the
papers. For other sizes those fold the extra ranks away first, which moves up to two more buffers. Here a group
of odd size splits unevenly instead: the larger, lower half's last rank sends to the upper half's last rank,
which receives twice, and gets nothing back in that round. That is still right, because a half needs each
contribution once, on any of its ranks.

With N ranks, L = ceil(log2 N), and a buffer of S bytes:

==============  ======  ==================================  ==========================================
collective      rounds  sent by a rank                      received by a rank
==============  ======  ==================================  ==========================================
reduce_scatter  L       (N-1)/N S                           (N-1)/N S; if N is no power of two, more on
                                                            some ranks (below 2 S) and less on others
all_gather      L       what it received in reduce_scatter  (N-1)/N S
all_reduce      2 L     the sum of both                     the same sum
==============  ======  ==================================  ==========================================
"""

from fractions import Fraction

from lockstep.collectives.schedule import ClosedForm, Round, Rounds, Schedule, Transfer
from lockstep.collectives.topology import Topology


def schedule(collective: str, rank: int, topology: Topology) -> Schedule:
    """One rank's rounds. The buffer has one chunk per rank."""
    size = topology.world_size
    levels = depth(size)
    reducing = levels if collective != "all_gather" else 0
    gathering = levels if collective != "reduce_scatter" else 0

    def compute(number: int) -> Round:
        if number < reducing:
            return halving_round(rank, size, number)
        return doubling_round(rank, size, number - reducing)

    return Schedule(collective, "halving_doubling", size, rank, size, Rounds(reducing + gathering, compute))


def depth(size: int) -> int:
    """How often a group must halve until every rank is alone: ceil(log2 size)."""
    return (size - 1).bit_length()


def halving_round(rank: int, size: int, level: int) -> Round:
    """What a rank does when groups halve for the ``level``-th time, counted from 0."""
    lower, upper = _halves(rank, size, level)
    if not upper:
        return ()
    kept, given = (lower, upper) if rank in lower else (upper, lower)
    index = rank - kept.start
    senders = list(given[index : index + 1])
    if rank == upper[-1] and len(lower) > len(upper):
        senders.append(lower[-1])
    # The larger half's last rank has no like in the other: it sends to that half's last one.
    partner = given[min(index, len(given) - 1)]
    return (Transfer(partner, given, "send"), *[Transfer(peer, kept, "receive_reduce") for peer in senders])


def doubling_round(rank: int, size: int, number: int) -> Round:
    """The halving backwards: what was received is sent, what was sent is received, complete this time."""
    mirrored = halving_round(rank, size, depth(size) - 1 - number)
    return tuple(
        [Transfer(each.peer, each.chunks, "receive" if each.kind == "send" else "send") for each in mirrored]
    )


def _halves(rank: int, size: int, level: int) -> tuple[range, range]:
    """The two halves, by then, of the group that a rank is in; the upper one is empty if it is alone."""
    start, stop = 0, size
    for _ in range(level):
        middle = start + (stop - start + 1) // 2
        start, stop = (start, middle) if rank < middle else (middle, stop)
    middle = start + (stop - start + 1) // 2
    return range(start, middle), range(middle, stop)


def closed_form(collective: str, rank: int, topology: Topology) -> ClosedForm:
    """The table above, for one rank."""
    size = topology.world_size
    even = Fraction(size - 1, size)  # what goes out while halving, and comes in while doubling
    uneven = Fraction(_received(size, rank), size)  # what comes in while halving, and goes out while doubling
    return {
        "reduce_scatter": ClosedForm(depth(size), even, uneven),
        "all_gather": ClosedForm(depth(size), uneven, even),
        "all_reduce": ClosedForm(2 * depth(size), even + uneven, even + uneven),
    }[collective]


def _received(size: int, index: int) -> int:
    """Chunks that the ``index``-th rank of a group receives while it halves: size - 1 for powers of two."""
    if size == 1:
        return 0
    lower, upper = (size + 1) // 2, size // 2
    if index < lower:
        return (lower if index < upper else 0) + _received(lower, index)
    messages = 2 if lower > upper and index == size - 1 else 1
    return messages * upper + _received(upper, index - lower)
