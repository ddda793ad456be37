"""The double binary tree: two trees over the same ranks, each of which carries half of the buffer.

Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009, the parts
on broadcast and reduction; NCCL has used it since version 2.4. A rank that is inside one tree is a leaf of the
other, so that no rank carries much more than another. Each half is cut into ``PIECES`` chunks that follow each
other up the tree (reduce) and down again (broadcast), a level a round; sums of later chunks still go up while
earlier ones come down. The paper also colours the edges, so that a rank sends at most one message in a step and
receives one; here a rank moves its messages of both trees in one round, one after another.

The trees are in order: rank p - 1 stands at place p, counted from 1, whose height is the number of its trailing
zero bits. The second tree is the mirror of the first if N is even, and the first shifted by one rank if N is
odd; either way the ranks inside the first are the leaves of the second.

With N ranks, D = floor(log2 N), d = floor(log2 (N-1)), C = PIECES, and a buffer of S bytes:

==========  ==============  ====================================================================
collective  rounds          sent by a rank
==========  ==============  ====================================================================
all_reduce  2 D + C - 1     S/2 for each parent and for each child that it has in the two trees:
                            at most 2 S, on average 2 (N-1)/N S
broadcast   d + C           S/2 for each child in the two trees: at most S. The trees are over
                            the ranks from 1 on, and the root feeds both
==========  ==============  ====================================================================
"""

from dataclasses import dataclass
from fractions import Fraction

from lockstep.collectives.schedule import ClosedForm, Round, Rounds, Schedule, Transfer
from lockstep.collectives.topology import Topology

PIECES = 8
"""Chunks of each half: more of them fill the pipeline better, and pay more messages."""


@dataclass(frozen=True)
class Place:
    """Where a rank stands in one tree. ``parent`` is None at the root."""

    parent: int | None
    children: tuple[int, ...]
    depth: int


def schedule(collective: str, rank: int, topology: Topology, pieces: int = PIECES) -> Schedule:
    """One rank's rounds. The buffer has ``pieces`` chunks for each of the two trees."""
    size = topology.world_size
    if size == 1:
        return Schedule(collective, "tree", size, rank, 2 * pieces, ())
    reducing = collective == "all_reduce"
    places = [_place(collective, rank, size, mirrored) for mirrored in (False, True)]
    count = closed_form(collective, rank, topology, pieces).rounds
    deepest = size.bit_length() - 1  # the level of the lowest leaves; the root's is 0

    def compute(number: int) -> Round:
        transfers: list[Transfer] = []
        for tree, place in enumerate(places):
            first = tree * pieces
            if reducing:
                transfers += _up(place, number - deepest + place.depth, pieces, first)
                transfers += _down(place, number - deepest - place.depth, pieces, first)
            else:
                transfers += _down(place, number - place.depth, pieces, first)
        # The messages of a pair of ranks stand in the order of their chunks on both sides.
        return tuple(sorted(transfers, key=lambda each: each.chunks.start))

    return Schedule(collective, "tree", size, rank, 2 * pieces, Rounds(count, compute))


def _up(place: Place, piece: int, pieces: int, first: int) -> list[Transfer]:
    """Send a piece to the parent while the children's next one arrives."""
    transfers = []
    if place.parent is not None and 0 <= piece < pieces:
        transfers.append(Transfer(place.parent, _chunk(first + piece), "send"))
    if 0 <= piece + 1 < pieces:
        transfers += [
            Transfer(child, _chunk(first + piece + 1), "receive_reduce") for child in place.children
        ]
    return transfers


def _down(place: Place, piece: int, pieces: int, first: int) -> list[Transfer]:
    """Send a piece to the children while the parent's next one arrives."""
    transfers = []
    if 0 <= piece < pieces:
        transfers += [Transfer(child, _chunk(first + piece), "send") for child in place.children]
    if place.parent is not None and 0 <= piece + 1 < pieces:
        transfers.append(Transfer(place.parent, _chunk(first + piece + 1), "receive"))
    return transfers


def _chunk(number: int) -> range:
    return range(number, number + 1)


def _place(collective: str, rank: int, size: int, mirrored: bool) -> Place:
    if collective == "all_reduce":
        return tree_place(rank, size, mirrored)
    # The root stands above both trees of the others, which are one rank and one level further down.
    root_of_others = 1 + _rank_at(1 << ((size - 1).bit_length() - 1), size - 1, mirrored)
    if rank == 0:
        return Place(None, (root_of_others,), 0)
    place = tree_place(rank - 1, size - 1, mirrored)
    parent = 0 if place.parent is None else place.parent + 1
    return Place(parent, tuple(child + 1 for child in place.children), place.depth + 1)


def tree_place(rank: int, size: int, mirrored: bool) -> Place:
    """Where a rank stands in the first tree over ``size`` ranks, or in the second (``mirrored``)."""
    position = _position(rank, size, mirrored)
    height = position & -position  # the lowest set bit: 1 for leaves
    parent, depth, above = None, 0, position
    while (above := _above(above, size)) != 0:
        parent = above if parent is None else parent
        depth += 1
    children = []
    if height > 1:
        children.append(position - height // 2)
        step = height // 2
        while step and position + step > size:
            step //= 2  # the subtree on the right is smaller: its root stands lower
        if step:
            children.append(position + step)
    return Place(
        None if parent is None else _rank_at(parent, size, mirrored),
        tuple(_rank_at(child, size, mirrored) for child in children),
        depth,
    )


def _above(position: int, size: int) -> int:
    """The place above one in the in-order tree over 1 to size; 0 above the root."""
    height = position & -position
    higher = (position ^ height) | (height << 1)
    if higher <= size:
        return higher
    return (
        position ^ height
    )  # a left child whose parent would lie outside hangs below the next one to the left


def _position(rank: int, size: int, mirrored: bool) -> int:
    if not mirrored:
        return rank + 1
    return size - rank if size % 2 == 0 else (rank + 1) % size + 1


def _rank_at(position: int, size: int, mirrored: bool) -> int:
    if not mirrored:
        return position - 1
    return size - position if size % 2 == 0 else (position - 2) % size


def closed_form(collective: str, rank: int, topology: Topology, pieces: int = PIECES) -> ClosedForm:
    """The table above, for one rank."""
    size = topology.world_size
    if size == 1:
        return ClosedForm(0, Fraction(0), Fraction(0))
    places = [_place(collective, rank, size, mirrored) for mirrored in (False, True)]
    children = sum(len(place.children) for place in places)
    parents = sum(place.parent is not None for place in places)
    if collective == "broadcast":
        rounds = (size - 1).bit_length() - 1 + pieces
        return ClosedForm(rounds, Fraction(children, 2), Fraction(parents, 2))
    share = Fraction(children + parents, 2)
    return ClosedForm(2 * (size.bit_length() - 1) + pieces - 1, share, share)
