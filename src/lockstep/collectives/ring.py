"""The ring: every rank sends to the next one and receives from the one before.

Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009;
the all_gather is also in Thakur, Rabenseifner and Gropp 2005. The broadcast is the pipelined chain.

==============  =============  ==============================  =====================================
collective      rounds         sent by a rank                  of a buffer of S bytes, N ranks
==============  =============  ==============================  =====================================
reduce_scatter  N - 1          (N-1)/N S                       the least possible
all_gather      N - 1          (N-1)/N S                       the least possible
all_reduce      2 (N - 1)      2 (N-1)/N S                     the least possible; many rounds
broadcast       2 (N - 1)      S, the last rank nothing        chunk c leaves rank r in round c + r
==============  =============  ==============================  =====================================
"""

from fractions import Fraction

from lockstep.collectives.schedule import ClosedForm, Kind, Phase, Round, Rounds, Schedule, Transfer
from lockstep.collectives.topology import Topology


def schedule(collective: str, rank: int, topology: Topology) -> Schedule:
    """One rank's rounds. The buffer has one chunk per rank."""
    size = topology.world_size
    if collective == "broadcast":
        rounds = Rounds(2 * (size - 1), lambda number: _chain(rank, size, number))
        return Schedule(collective, "ring", size, rank, size, rounds)
    reducing = size - 1 if collective != "all_gather" else 0
    gathering = size - 1 if collective != "reduce_scatter" else 0

    def compute(number: int) -> Round:
        if number < reducing:
            return reduce_scatter_round(rank, size, number)
        return all_gather_round(rank, size, number - reducing)

    phases = tuple(Phase(count) for count in (reducing, gathering) if count)
    return Schedule(collective, "ring", size, rank, size, Rounds(reducing + gathering, compute), phases)


def reduce_scatter_round(rank: int, size: int, number: int) -> Round:
    """A partial sum starts at the rank after its chunk's owner, and walks round the ring to the owner."""
    sent = (rank - number - 1) % size
    return _step(rank, size, sent, "receive_reduce")


def all_gather_round(rank: int, size: int, number: int) -> Round:
    """A complete chunk starts at its owner and walks round the ring."""
    sent = (rank - number) % size
    return _step(rank, size, sent, "receive")


def _step(rank: int, size: int, sent: int, kind: Kind) -> Round:
    received = (sent - 1) % size
    return (
        Transfer((rank + 1) % size, range(sent, sent + 1), "send"),
        Transfer((rank - 1) % size, range(received, received + 1), kind),
    )


def _chain(rank: int, size: int, number: int) -> Round:
    """The root is the head of a chain; each chunk follows the one before at a distance of one rank."""
    transfers = []
    sent, received = number - rank, number - rank + 1
    if rank < size - 1 and 0 <= sent < size:
        transfers.append(Transfer(rank + 1, range(sent, sent + 1), "send"))
    if rank > 0 and 0 <= received < size:
        transfers.append(Transfer(rank - 1, range(received, received + 1), "receive"))
    return tuple(transfers)


def closed_form(collective: str, rank: int, topology: Topology) -> ClosedForm:
    """The table above, for one rank."""
    size = topology.world_size
    if size == 1:
        return ClosedForm(0, Fraction(0), Fraction(0))
    if collective == "broadcast":
        return ClosedForm(2 * (size - 1), Fraction(rank < size - 1), Fraction(rank > 0))
    passes = 2 if collective == "all_reduce" else 1
    share = Fraction(passes * (size - 1), size)
    return ClosedForm(passes * (size - 1), share, share)
