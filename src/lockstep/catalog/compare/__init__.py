"""Two runs side by side: what went into them, what they computed, the first step at which they part, and why."""

from pathlib import Path
from typing import Any

from lockstep.catalog.compare import cause, code, coverage, exactness, inputs, parting, quantities, tensors
from lockstep.catalog.compare import steps as metrics
from lockstep.catalog.compare.quantities import WEIGHTS, Difference, Walk
from lockstep.catalog.report.values import whole
from lockstep.catalog.run import Run
from lockstep.files import read_object

SAME, WITHIN, PARTED, NOTHING = "same bits", "within tolerance", "parted", "nothing to compare"


def compare(a: Run, b: Run, folders: list[Path], tolerance: float | None = None) -> dict[str, Any]:
    """Everything about two runs that differs, as one JSON value.

    ``folders`` are where a repository may stand that knows their commits. With a ``tolerance`` two numbers agree
    where they differ by at most that share of the larger; two tensors, of their largest element.
    """
    before = [inputs.parameters_of(run) for run in (a, b)]
    found = {
        "parameters": inputs.differences(*before),
        "environment": inputs.environment(a, b),
        "data": inputs.differences(inputs.data_of(a), inputs.data_of(b)),
        "metrics": inputs.differences(inputs.results_of(a), inputs.results_of(b)),
    }
    source = code.compare(code.state_of(a), code.state_of(b), folders)
    left, right = metrics.read(a), metrics.read(b)
    single = any(values.get("training.precision") != "fp64" for values in before)
    same_layout = _layout(before[0]) == _layout(before[1])
    same_type = len({values.get("training.precision") == "fp64" for values in before}) == 1
    walk = parting.walk(left, right, tolerance, single, same_layout, same_type)
    pairs = tensors.common(a, b)
    results = found["metrics"] if left.last == right.last else []
    first, beyond = _with_checkpoints(walk, pairs, results, tolerance)
    verdict = _verdict(walk, pairs, first, beyond, tolerance)
    why = None
    if first is not None:
        begun = min(walk.steps, default=0) >= max(left.first_own_step, right.first_own_step)
        start = inputs.differences(*(inputs.starting_point(run) for run in (a, b))) if begun else []
        known = cause.Inputs(
            found["parameters"],
            found["environment"],
            found["data"],
            start,
            source,
            not all(exactness.of(*each) for each in zip((left, right), before, strict=True)),
            [*_repeats(left), *_repeats(right)],
            coverage.gaps(a, b, source),
            [each for name, run in (("A", a), ("B", b)) for each in coverage.attempts(name, run, folders)],
            coverage.imported_files(a, b),
            all(inputs.distributions_of(run) for run in (a, b)),
        )
        why = cause.find(walk, first, known)
    return {
        "a": _named(a),
        "b": _named(b),
        **{name: [each.as_dict() for each in differences] for name, differences in found.items()},
        "code": source.as_dict(),
        "training": {
            "verdict": verdict,
            "tolerance": tolerance,
            "steps": {"first": min(walk.steps, default=None), "last": max(walk.steps, default=None)},
            "last_step": {"a": left.last, "b": right.last},
            "by_rank": walk.by_rank,
            "compared": walk.compared,
            "checkpoints": [{"step": each.step, "same": each.same, "other": each.other} for each in pairs],
            "first": _explained(first, walk, left, right, pairs, single) if first else None,
            "beyond": beyond.as_dict() if beyond else None,
            "largest": {name: each.as_dict() for name, each in walk.largest.items()},
            "notes": [
                *left.notes,
                *right.notes,
                *_repeats(left),
                *_repeats(right),
                *_other_schedule(left, right),
            ],
        },
        "cause": why.as_dict() if why else None,
    }


def _named(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "path": str(run.path)}


def _with_checkpoints(
    walk: Walk, pairs: list[tensors.Pair], results: list[inputs.Apart], tolerance: float | None
) -> tuple[Difference | None, Difference | None]:
    """The first difference, and the first beyond the tolerance, with checkpoints and the evaluation looked at too."""
    first, beyond = walk.first, walk.beyond
    for pair in pairs:
        if not pair.other:
            if first is None or first.step > pair.step:
                walk.last_same_weights = max(pair.step, walk.last_same_weights or 0)
            continue
        apart = {part: tensors.apart(pair.a, pair.b, part) for part in pair.other}
        part = next(iter(apart))
        quantity = WEIGHTS if part == "model.safetensors" else tensors.PARTS[part]
        names = [each.name for each in apart[part]]
        difference = Difference(pair.step, quantity, None, names)
        if first is None or pair.step < first.step:
            first = difference
        largest = max((each.relative for found in apart.values() for each in found), default=float("inf"))
        if tolerance is not None and largest > tolerance and (beyond is None or pair.step < beyond.step):
            beyond = difference
    if first is None:
        first = next((_evaluation(each, walk) for each in results if each.key.startswith("test ")), None)
        if first is not None and tolerance is not None and (first.relative or 0) > tolerance:
            beyond = first
    return first, beyond


def _evaluation(each: inputs.Apart, walk: Walk) -> Difference | None:
    """The test split's figures, which come after the last step; only where both have them."""
    values = [value for value in (each.a, each.b) if isinstance(value, int | float)]
    if len(values) < 2:
        return None
    return Difference(max(walk.steps, default=0), each.key, None, a=float(values[0]), b=float(values[1]))


def _verdict(
    walk: Walk,
    pairs: list[tensors.Pair],
    first: Difference | None,
    beyond: Difference | None,
    tolerance: float | None,
) -> str:
    if not walk.steps and not pairs:
        return NOTHING
    if first is None:
        return SAME
    if tolerance is None or beyond is not None or not (walk.compared or pairs):
        return PARTED
    return WITHIN


def _explained(
    first: Difference,
    walk: Walk,
    left: metrics.Steps,
    right: metrics.Steps,
    pairs: list[tensors.Pair],
    single: bool,
) -> dict[str, Any]:
    """The first difference with its size, the steps in which it may have begun, and the tensors seen after it."""
    found = first.as_dict()
    if first.a is not None and first.b is not None:
        found["ulps"] = quantities.ulps(first.a, first.b, single)
    found["precision"] = "fp32" if single else "fp64"
    found["last_same_weights"] = walk.last_same_weights
    found["begun_in"] = [(walk.last_same_weights or 0) + 1, first.step] if first.step else None
    after = next((pair for pair in pairs if pair.step >= first.step and pair.other), None)
    if after is not None:
        part = after.other[0]
        apart = sorted(tensors.apart(after.a, after.b, part), key=lambda each: -each.relative)
        found["checkpoint"] = {
            "step": after.step,
            "part": tensors.PARTS[part],
            "tensors": [each.as_dict() for each in apart[:20]],
            "differing": len(apart),
        }
    if not first.tensors:
        found["seen_next"] = _next_tensors(first.step, left, right, walk.same_layout)
    return found


def _next_tensors(
    step: int, left: metrics.Steps, right: metrics.Steps, same_layout: bool
) -> dict[str, Any] | None:
    """The tensors that differ where fingerprints were next taken, from the step of the difference on."""
    for later in sorted(left.lines.keys() & right.lines.keys()):
        if later < step:
            continue
        for difference in quantities.prints_of(left, right, later, same_layout):
            return difference.as_dict()
    return None


def _layout(parameters: dict[str, Any]) -> dict[str, Any]:
    """What decides which slices of the weights a rank holds."""
    return {
        key: value
        for key, value in parameters.items()
        if key == "distributed.world_size" or key.startswith("distributed.strategy")
    }


def _other_schedule(left: metrics.Steps, right: metrics.Steps) -> list[str]:
    """That a schedule of the learning rate stretches over other steps, as after more epochs were asked for."""
    ends = [whole(read_object(each.run.plan).get("steps")) for each in (left, right)]
    if None in ends or ends[0] == ends[1]:
        return []
    varying = [each for each in (left, right) if len(each.rates()) > 1]
    if not varying:
        return []
    words = ["", ""]
    for index, each in enumerate((left, right)):
        jump = each.rates_where_it_goes_on()
        if jump:
            words[index] = (
                f" (it goes on at step {each.first_own_step} with {jump[1]:.3g}, after {jump[0]:.3g})"
            )
    return [
        f"the learning rate's schedule ends at step {ends[0]} in A{words[0]} and at step {ends[1]} in B{words[1]}: "
        "from where they have other rates they train differently"
    ]


def _repeats(steps: metrics.Steps) -> list[str]:
    """What a run that did some steps twice, after a crash, tells of itself."""
    other = sorted({step for step, _, same in steps.repeats if not same})
    if not other:
        return []
    return [
        f"{steps.run.shown} did {len(other)} of its own steps twice with other bits, the first of them step "
        f"{other[0]}: it does not repeat itself"
    ]
