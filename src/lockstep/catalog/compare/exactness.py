"""Whether a run's strategy was meant to compute what a single process does, up to rounding."""

from typing import Any

from lockstep.catalog.compare.steps import Steps

PREFIX = "distributed.strategy."


def of(steps: Steps, parameters: dict[str, Any]) -> bool:
    """As the strategy itself recorded when it began; of older records, as its source and options tell.

    A strategy of the user's own that recorded nothing is not taken for exact.
    """
    if steps.exact is not None:
        return steps.exact
    from lockstep import plugins  # only older records need it

    name = str(parameters.get(f"{PREFIX}name", parameters.get("distributed.strategy")))
    if plugins.is_own(name) or plugins.literal("strategies", name, "exact") is False:
        return False
    if parameters.get(f"{PREFIX}mode") in ("async", "ssp"):
        return False
    lossy = ("compressor", "param_dtype", "reduce_dtype")
    return all(
        value is None
        for key, value in parameters.items()
        if key.startswith(tuple(PREFIX + option for option in lossy))
    )
