"""The first step at which two runs part: which rank, which quantity, which tensors, and by how much.

Within a step the quantities are looked at in the order in which they come about: the samples, the loss, the
gradients and their norm, the learning rate, the weights after the update, the validation. The first that differs
is where the runs part, as far as they were looked at: weights are fingerprinted every ``digest_every`` steps only.
"""

from lockstep.catalog.compare import quantities
from lockstep.catalog.compare.quantities import COUNTED, SAMPLES, WEIGHTS, Difference, Walk
from lockstep.catalog.compare.steps import Place, Steps

State = dict[int, tuple[bytes, Place]]
PARAMETERS = "parameter_digests"


def walk(
    a: Steps,
    b: Steps,
    tolerance: float | None = None,
    single: bool = True,
    same_layout: bool = True,
    same_type: bool = True,
) -> Walk:
    """Compare every step that both have.

    ``single``: computed in fp32 or less, else in fp64. ``same_layout``: ranks of one number hold the same slices.
    ``same_type``: both computed in fp64, or neither did.
    """
    found = Walk(steps=sorted(a.lines.keys() & b.lines.keys()), same_layout=same_layout, same_type=same_type)
    found.rounding = 16 * (2.0**-23 if single else 2.0**-52)
    first = found.steps[0] if found.steps else 1
    _begin(found, a, b, first)
    for step in found.steps:
        left, right = a.lines[step], b.lines[step]
        if quantities.same_shares(left, right):
            differences = quantities.by_rank(found, step, left, right)
        else:
            found.by_rank = False
            differences = quantities.together(found, step, left, right, a.reduces and b.reduces)
        for difference in differences:
            _note(found, difference, tolerance)
        for difference in quantities.validation(found, a, b, step):
            _note(found, difference, tolerance)
        if found.first is None and _same_state(a, b, step, same_layout):
            found.last_same_weights = step
    return found


def _begin(found: Walk, a: Steps, b: Steps, first: int) -> None:
    """The weights before the first common step: where they differ already, nothing after it can agree."""
    before = first - 1
    if before not in a.states or before not in b.states:
        return
    if _same_state(a, b, before, found.same_layout):
        found.last_same_weights = before
        return
    left, right = a.states[before], b.states[before]
    ranks = sorted(rank for rank in left.keys() & right.keys() if left[rank][0] != right[rank][0])
    if found.same_layout and left.keys() == right.keys():
        names = quantities.differing(left[ranks[0]][1].read(), right[ranks[0]][1].read(), PARAMETERS)
        _note(found, Difference(before, WEIGHTS, ranks, names), None)
    elif names := _differing_wholes(left, right):
        _note(found, Difference(before, WEIGHTS, None, names), None)


def _note(found: Walk, difference: Difference, tolerance: float | None) -> None:
    if found.first is None:
        found.first = difference
    size = difference.relative
    if size is None:
        others = difference.quantity == SAMPLES and found.same_type
        if tolerance is not None and found.beyond is None and others:
            found.beyond = difference  # other samples are no matter of rounding
        return
    largest = found.largest.get(difference.quantity)
    if largest is None or size > (largest.relative or 0.0):
        found.largest[difference.quantity] = difference
    # A count of hits jumps where a score is on the edge, however small the difference: it is no measure.
    counted = difference.quantity in COUNTED
    if tolerance is not None and found.beyond is None and size > tolerance and not counted:
        found.beyond = difference


def _same_state(a: Steps, b: Steps, step: int, same_layout: bool) -> bool:
    """Whether both have the fingerprints of all weights after a step, and they are the same."""
    left, right = a.states.get(step), b.states.get(step)
    if not left or not right:
        return False
    if same_layout and left.keys() == right.keys():
        return all(left[rank][0] == right[rank][0] for rank in left)
    return not _differing_wholes(left, right)


def _differing_wholes(left: State, right: State) -> list[str]:
    if len({prints for prints, _ in (*left.values(), *right.values())}) == 1:
        return []  # every rank of both holds the same
    places = [[place for _, place in ranks.values()] for ranks in (left, right)]
    return quantities.differing_wholes(places[0], places[1], PARAMETERS)
