"""The quantities of one step of two runs, held against each other in the order in which they come about."""

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lockstep.catalog.compare.steps import Line, Place, Steps
from lockstep.strict_json import real

SAMPLES, WEIGHTS = "samples of the batch", "weights after the update"
NAMES = {
    "loss": "loss",
    "correct": "samples classified rightly",
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
    "gradient_digests": "gradient",
    "own_gradient_digests": "gradient of the rank's own",
    "parameter_digests": WEIGHTS,
}
BEFORE_UPDATE = ("loss", "correct", "grad_norm", "gradient_digests", "own_gradient_digests", "learning_rate")
COUNTED = (NAMES["correct"], "validation accuracy")


@dataclass(frozen=True)
class Difference:
    """One quantity of one step that differs. ``rank`` is None where it is one of all ranks together."""

    step: int
    quantity: str
    ranks: list[int] | None
    tensors: list[str] = field(default_factory=list)
    a: float | None = None
    b: float | None = None

    @property
    def relative(self) -> float | None:
        """By how much, as a share of the larger; None where only fingerprints tell."""
        return None if self.a is None or self.b is None else relative(self.a, self.b)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "relative": self.relative}


@dataclass
class Walk:
    """What a comparison of all common steps has found."""

    first: Difference | None = None  # in bits
    beyond: Difference | None = None  # the first that is further apart than the tolerance
    steps: list[int] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)  # how many values of each quantity
    by_rank: bool = True  # false: the ranks share the work differently, so only what is common was compared
    same_layout: bool = True  # the ranks of both hold the same slices of the weights
    same_type: bool = True  # of the numbers; else every fingerprint differs, and says nothing of the values
    rounding: float = 0.0  # a mean put together from ranks' means may differ by it for that alone
    last_same_weights: int | None = None  # before the first difference
    largest: dict[str, Difference] = field(default_factory=dict)


def same_bits(a: float, b: float) -> bool:
    """Whether two floats are one and the same, the sign of zero included. One NaN is like another."""
    return (math.isnan(a) and math.isnan(b)) or (a == b and struct.pack("d", a) == struct.pack("d", b))


def relative(a: float, b: float) -> float:
    """|a - b| as a share of the larger of the two."""
    if a == b:
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def ulps(a: float, b: float, single: bool) -> int:
    """How many numbers of the precision lie between two values."""
    return abs(_ordered(a, single) - _ordered(b, single))


def _ordered(value: float, single: bool) -> int:
    """The bits as a whole number, in the order of the values."""
    kinds = ("f", "i") if single else ("d", "q")
    try:
        (bits,) = struct.unpack(kinds[1], struct.pack(kinds[0], value))
    except OverflowError:  # too large for single precision
        return 2**31
    lowest = -(2**31) if single else -(2**63)
    return int(bits) if bits >= 0 else lowest - int(bits)


def same_shares(left: dict[int, Line], right: dict[int, Line]) -> bool:
    """Whether the ranks of both computed with as many samples each, so that rank can be held against rank."""
    return left.keys() == right.keys() and all(left[rank].samples == right[rank].samples for rank in left)


def by_rank(found: Walk, step: int, left: dict[int, Line], right: dict[int, Line]) -> Iterator[Difference]:
    """Rank by rank. Of one quantity, all ranks that differ are one difference."""
    pairs = [(rank, left[rank], right[rank]) for rank in sorted(left)]
    batches = [
        (rank, a.batch, b.batch) for rank, a, b in pairs if a.batch is not None and b.batch is not None
    ]
    _count(found, SAMPLES, len(batches))
    if ranks := [rank for rank, one, other in batches if one != other]:
        yield Difference(step, SAMPLES, ranks)
    for name in (*BEFORE_UPDATE, "parameter_digests"):
        if name in ("gradient_digests", "parameter_digests") and not found.same_layout:
            yield from _merged(found, step, name, left, right)
        elif name.endswith("digests"):
            yield from _prints(found, step, name, pairs)
        else:
            yield from _scalars(found, step, name, pairs)


def _scalars(found: Walk, step: int, name: str, pairs: list[tuple[int, Line, Line]]) -> Iterator[Difference]:
    both = [
        (rank, a.scalars[name], b.scalars[name])
        for rank, a, b in pairs
        if name in a.scalars and name in b.scalars
    ]
    _count(found, NAMES[name], len(both))
    apart = [(rank, one, other) for rank, one, other in both if not same_bits(one, other)]
    if apart:
        _, one, other = max(apart, key=lambda each: relative(each[1], each[2]))
        yield Difference(step, NAMES[name], [rank for rank, _, _ in apart], a=one, b=other)


def _prints(found: Walk, step: int, name: str, pairs: list[tuple[int, Line, Line]]) -> Iterator[Difference]:
    both = [(rank, a, b) for rank, a, b in pairs if name in a.prints and name in b.prints]
    _count(found, NAMES[name], len(both))
    apart = [(rank, a, b) for rank, a, b in both if a.prints[name] != b.prints[name]]
    if apart:
        names: list[str] = []
        if found.first is None or found.first.step == step:  # later ones are not shown, and cost reading
            _, one, other = apart[0]
            names = differing(one.place.read(), other.place.read(), name)
        yield Difference(step, NAMES[name], [rank for rank, _, _ in apart], names)


def differing(one: dict[str, Any], other: dict[str, Any], name: str) -> list[str]:
    """The tensors whose fingerprints differ, in the model's order; also those that only one has."""
    left, right = one.get(name), other.get(name)
    if not isinstance(left, dict) or not isinstance(right, dict):
        return []
    return [
        key for key in [*left, *(key for key in right if key not in left)] if left.get(key) != right.get(key)
    ]


def together(
    found: Walk, step: int, left: dict[int, Line], right: dict[int, Line], reduced: bool
) -> Iterator[Difference]:
    """What can be compared where the ranks share the work differently: what is of all of them together."""
    if all(line.batch is not None for line in (*left.values(), *right.values())):
        _count(found, SAMPLES, 1)
        totals = [sum(line.batch or 0 for line in ranks.values()) for ranks in (left, right)]
        if (totals[0] - totals[1]) % 2**64:  # sums of parts are the sum of the whole, modulo 2^64
            yield Difference(step, SAMPLES, None)
    losses = [_mean(ranks, "loss") for ranks in (left, right)]
    yield from _pair(found, step, NAMES["loss"], losses, found.rounding)
    one, other = left[min(left)], right[min(right)]
    if reduced:
        yield from _pair(
            found, step, NAMES["grad_norm"], [each.scalars.get("grad_norm") for each in (one, other)]
        )
        yield from _merged(found, step, "gradient_digests", left, right)
    rates = [each.scalars.get("learning_rate") for each in (one, other)]
    yield from _pair(found, step, NAMES["learning_rate"], rates)
    yield from _merged(found, step, "parameter_digests", left, right)


def _pair(
    found: Walk, step: int, quantity: str, values: list[float | None], rounding: float = 0.0
) -> Iterator[Difference]:
    one, other = values
    if one is None or other is None:
        return
    _count(found, quantity, 1)
    if not same_bits(one, other) and relative(one, other) > rounding:
        yield Difference(step, quantity, None, a=one, b=other)


def _mean(ranks: dict[int, Line], name: str) -> float | None:
    """Over all samples of the step."""
    samples = sum(line.samples for line in ranks.values())
    if not samples or not all(name in line.scalars for line in ranks.values()):
        return None
    return _sum(line.scalars[name] * line.samples for line in ranks.values()) / samples


def _sum(values: Iterable[float]) -> float:
    """The exact sum, rounded once; NaN where infinities of both signs meet, and infinite where it is too large."""
    found = list(values)
    try:
        return math.fsum(found)
    except (ValueError, OverflowError):
        return sum(found)


def _merged(
    found: Walk, step: int, name: str, left: dict[int, Line], right: dict[int, Line]
) -> Iterator[Difference]:
    """Fingerprints of whole tensors, however the ranks hold them."""
    if not all(name in line.prints for line in (*left.values(), *right.values())):
        return
    _count(found, NAMES[name], 1)
    places = [[line.place for line in ranks.values()] for ranks in (left, right)]
    if names := differing_wholes(places[0], places[1], name):
        yield Difference(step, NAMES[name], None, names)


def differing_wholes(left: list[Place], right: list[Place], name: str) -> list[str]:
    """The tensors that are not the same as wholes, each run's being told by a line of each of its ranks.

    A tensor stands on every rank, or each rank holds its slice. Which of the two a line does not say: where all
    ranks have one fingerprint it may be either, else the slices' add up (modulo 2^64) to that of the whole.
    """
    one, other = _wholes(left, name), _wholes(right, name)
    names = [*one, *(key for key in other if key not in one)]
    return [key for key in names if not one.get(key, set()) & other.get(key, set())]


def _wholes(places: list[Place], name: str) -> dict[str, set[int]]:
    values: dict[str, list[int]] = {}
    for place in places:
        found = place.read().get(name)
        for key, value in found.items() if isinstance(found, dict) else ():
            values.setdefault(key, []).append(value)
    return {
        key: {sum(each) % 2**64, *({each[0] % 2**64} if len(set(each)) == 1 else ())}
        for key, each in values.items()
    }


def validation(found: Walk, a: Steps, b: Steps, step: int) -> Iterator[Difference]:
    """Validation at the end of an epoch, over all ranks."""
    left, right = a.epochs.get(step), b.epochs.get(step)
    if not left or not right:
        return
    rounding = 0.0 if left.keys() == right.keys() else found.rounding
    for key in ("loss", "accuracy"):
        values = [_over_ranks(ranks, key) for ranks in (left, right)]
        yield from _pair(found, step, f"validation {key}", values, rounding)


def _over_ranks(ranks: dict[int, dict[str, Any]], key: str) -> float | None:
    """The mean over all samples of the split."""
    shares = [ranks[rank]["validation"] for rank in sorted(ranks)]
    pairs = [
        (value, count)
        for share in shares
        if (value := real(share.get(key))) is not None and (count := real(share.get("samples"))) is not None
    ]
    samples = sum(count for _, count in pairs)
    if len(pairs) < len(shares) or not samples:
        return None
    return _sum(value * count for value, count in pairs) / samples


def _count(found: Walk, quantity: str, values: int) -> None:
    if values:
        found.compared[quantity] = found.compared.get(quantity, 0) + values


def prints_of(a: Steps, b: Steps, step: int, same_layout: bool) -> Iterator[Difference]:
    """What the fingerprints of one step tell apart, with the tensors' names."""
    left, right, none = a.lines[step], b.lines[step], Walk()
    if same_layout and same_shares(left, right):
        pairs = [(rank, left[rank], right[rank]) for rank in sorted(left)]
        for name in ("gradient_digests", "own_gradient_digests", "parameter_digests"):
            yield from _prints(none, step, name, pairs)
        return
    for name in ("gradient_digests", "parameter_digests"):
        yield from _merged(none, step, name, left, right)
