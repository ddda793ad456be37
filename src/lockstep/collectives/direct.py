"""Everyone to everyone at once: the fewest rounds, and as many messages as there are ranks.

The reduce_scatter is Thakur, Rabenseifner and Gropp 2005 ("pairwise exchange"), in one round
instead of N - 1. The broadcast is flat: the root sends the buffer to each rank in turn.

==============  ======  =============  ================  ===================================
collective      rounds  messages sent  sent by a rank    of a buffer of S bytes, N ranks
==============  ======  =============  ================  ===================================
reduce_scatter  1       N - 1          (N-1)/N S         the least possible
all_gather      1       N - 1          (N-1)/N S         the least possible
all_reduce      2       2 (N - 1)      2 (N-1)/N S       the least possible
broadcast       1       N - 1          (N-1) S           by the root; the others send nothing
==============  ======  =============  ================  ===================================

Sends go to rank + 1, rank + 2, ... in turn, so that not everyone starts with rank 0; contributions are added
in the order in which they are sent: from rank - 1, then rank - 2, ...
"""

from fractions import Fraction

from lockstep.collectives.schedule import ClosedForm, Phase, Round, Rounds, Schedule, Transfer
from lockstep.collectives.topology import Topology


def schedule(collective: str, rank: int, topology: Topology) -> Schedule:
    """One rank's rounds. The buffer has one chunk per rank, or for a broadcast one in all."""
    size = topology.world_size
    if size == 1:
        return Schedule(collective, "direct", size, rank, 1, ())
    if collective == "broadcast":
        return Schedule(collective, "direct", size, rank, 1, Rounds(1, lambda _: _flat(rank, size)))
    reducing = collective != "all_gather"
    gathering = collective != "reduce_scatter"

    def compute(number: int) -> Round:
        return _scatter(rank, size) if reducing and number == 0 else _gather(rank, size)

    phases = (Phase(1, everyone=True),) * (reducing + gathering)
    return Schedule(collective, "direct", size, rank, size, Rounds(reducing + gathering, compute), phases)


def _others(rank: int, size: int) -> list[int]:
    return [(rank + distance) % size for distance in range(1, size)]


def _scatter(rank: int, size: int) -> Round:
    """Each rank gets everyone's part of its own chunk."""
    own = range(rank, rank + 1)
    sends = [Transfer(peer, range(peer, peer + 1), "send") for peer in _others(rank, size)]
    return (*sends, *(Transfer(peer, own, "receive_reduce") for peer in reversed(_others(rank, size))))


def _gather(rank: int, size: int) -> Round:
    """Each rank gives its own chunk to everyone."""
    own = range(rank, rank + 1)
    sends = [Transfer(peer, own, "send") for peer in _others(rank, size)]
    receives = [Transfer(peer, range(peer, peer + 1), "receive") for peer in reversed(_others(rank, size))]
    return (*sends, *receives)


def _flat(rank: int, size: int) -> Round:
    if rank == 0:
        return tuple(Transfer(peer, range(1), "send") for peer in range(1, size))
    return (Transfer(0, range(1), "receive"),)


def closed_form(collective: str, rank: int, topology: Topology) -> ClosedForm:
    """The table above, for one rank."""
    size = topology.world_size
    if size == 1:
        return ClosedForm(0, Fraction(0), Fraction(0))
    if collective == "broadcast":
        return ClosedForm(1, Fraction(0 if rank else size - 1), Fraction(rank > 0))
    rounds = 2 if collective == "all_reduce" else 1
    share = Fraction(rounds * (size - 1), size)
    return ClosedForm(rounds, share, share)
