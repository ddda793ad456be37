"""What a collective is: for each rank, rounds of transfers. Everything else here reads these types.

Four rules hold for every schedule, and ``prove`` checks each of them:

- All ranks have the same number of rounds, and a send in round r has its receive in round r.
- The messages from one rank to another within a round stand in the same order on both sides.
- What is sent in a round is what the buffer held when the round began: no rank sends a chunk in the round in
  which it writes it.
- Several ``receive_reduce`` of one chunk in one round are added in the order in which they stand, so that a
  repeated run repeats its bits.

Which algorithm does which collective (``PAIRS`` below is the same table for programs):

==================  ==========  ==============  ==========  =========
algorithm           all_reduce  reduce_scatter  all_gather  broadcast
==================  ==========  ==============  ==========  =========
ring                yes         yes             yes         yes
tree                yes         -               -           yes
halving_doubling    yes         yes             yes         -
direct              yes         yes             yes         yes
hierarchical        yes         -               -           -
==================  ==========  ==============  ==========  =========

A buffer is cut into ``chunks`` pieces. ``reduce_scatter`` leaves chunk r, complete, on rank r (the others are
scratch); ``all_gather`` starts with chunk r on rank r; both have as many chunks as ranks. The root of
``broadcast`` is rank 0.

A schedule's rounds are computed when they are asked for, so that one rank's schedule for 16,384 ranks takes no
more memory than one for four.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, overload

from lockstep.collectives.topology import Topology
from lockstep.errors import UsageError

Kind = Literal["send", "receive", "receive_reduce"]

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")

PAIRS: dict[str, tuple[str, ...]] = {
    "ring": COLLECTIVES,
    "tree": ("all_reduce", "broadcast"),
    "halving_doubling": ("all_reduce", "reduce_scatter", "all_gather"),
    "direct": COLLECTIVES,
    "hierarchical": ("all_reduce",),
}


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one rank does in a round: the chunks of the range travel as one message."""

    peer: int
    chunks: range
    kind: Kind


Round = tuple[Transfer, ...]


class Rounds(Sequence[Round]):
    """Rounds that are computed when they are asked for, and not kept."""

    def __init__(self, count: int, compute: Callable[[int], Round]) -> None:
        self._count = count
        self._compute = compute

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Round: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Round, ...]: ...
    def __getitem__(self, index: int | slice) -> Round | tuple[Round, ...]:
        if isinstance(index, slice):
            return tuple(self._compute(number) for number in range(self._count)[index])
        return self._compute(range(self._count)[index])  # the range raises IndexError, and turns -1 around


@dataclass(frozen=True)
class Phase:
    """Consecutive rounds that look alike: the same peers, kinds and message lengths, only other chunks.

    The simulation of the cost reads the first round of a phase and repeats it; ``prove`` checks that it may.
    ``everyone`` says that in each round every rank sends one message of the same length to every other.
    """

    rounds: int
    everyone: bool = False


@dataclass(frozen=True)
class Schedule:
    """What one rank does. ``phases`` empty means that no two rounds are known to look alike.

    The last ``servers`` ranks are parameter servers, which contribute nothing of their own.
    """

    collective: str
    algorithm: str
    world_size: int
    rank: int
    chunks: int
    rounds: Sequence[Round]
    phases: tuple[Phase, ...] = ()
    servers: int = 0


@dataclass(frozen=True)
class ClosedForm:
    """What an algorithm claims for one rank: its rounds, and what it sends and receives.

    ``sent`` and ``received`` are shares of the buffer (Fraction(3, 2) = one and a half times its bytes), exact
    where all chunks are equal.
    """

    rounds: int
    sent: Fraction
    received: Fraction


def chunk_bounds(elements: int, chunks: int) -> list[tuple[int, int]]:
    """Start and stop of each chunk, in elements. Sizes differ by one at most, and may be 0."""
    return [(elements * index // chunks, elements * (index + 1) // chunks) for index in range(chunks)]


def make(
    collective: str,
    algorithm: str,
    rank: int,
    world_size: int,
    topology: Topology | None = None,
    **options: int,
) -> Schedule:
    """The schedule of one rank. Without a topology all ranks stand on one machine.

    ``options`` are the algorithm's own: ``pieces`` for the tree. Raises UsageError for a pair that does not
    exist, for an option that the algorithm lacks, or for a topology of another size.
    """
    where = _checked(collective, algorithm, rank, world_size, topology, options)
    schedule: Schedule = _module(algorithm).schedule(collective, rank, where, **options)
    return schedule


def closed_form(
    collective: str,
    algorithm: str,
    rank: int,
    world_size: int,
    topology: Topology | None = None,
    **options: int,
) -> ClosedForm:
    """What the algorithm claims for one rank; options and errors are those of ``make``."""
    where = _checked(collective, algorithm, rank, world_size, topology, options)
    form: ClosedForm = _module(algorithm).closed_form(collective, rank, where, **options)
    return form


def _module(algorithm: str) -> Any:
    return importlib.import_module(f"lockstep.collectives.{algorithm}")


def _checked(
    collective: str,
    algorithm: str,
    rank: int,
    world_size: int,
    topology: Topology | None,
    options: dict[str, int],
) -> Topology:
    if algorithm not in PAIRS:
        raise UsageError(f"there is no algorithm {algorithm!r}; there are: {', '.join(PAIRS)}")
    if collective not in COLLECTIVES:
        raise UsageError(f"there is no collective {collective!r}; there are: {', '.join(COLLECTIVES)}")
    if collective not in PAIRS[algorithm]:
        does = ", ".join(name for name, collectives in PAIRS.items() if collective in collectives)
        raise UsageError(
            f"{algorithm} does {', '.join(PAIRS[algorithm])}, not {collective}; {collective} is done by: {does}"
        )
    if world_size < 1 or not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} of {world_size}: the ranks are 0 to world_size - 1")
    if topology is not None and topology.world_size != world_size:
        raise UsageError(f"the topology has {topology.world_size} ranks, the world {world_size}")
    for name, value in options.items():
        if algorithm != "tree" or name != "pieces" or value < 1:
            raise UsageError(
                f"{algorithm} takes no {name}={value}; only tree takes an option: pieces, at least 1"
            )
    return topology or Topology.one_machine(world_size)
