"""An epoch over all ranks, from the shares that they wrote, where the run never came to aggregate them."""

from typing import Any

from lockstep.catalog.report.values import at, figure, number
from lockstep.strict_json import real


def together(kept: dict[str, Any]) -> dict[str, Any]:
    """An epoch over all ranks' samples, in the shape that the results have; ``ranks`` is how many wrote one."""
    merged: dict[str, Any] = {
        "epoch": kept["epoch"],
        "step": kept["step"],
        "ranks": len(kept["shares"]),
    }
    seconds = [number(line.get("seconds")) for line in kept["shares"]]
    merged["seconds"] = max((value for value in seconds if value is not None), default=None)
    for split in ("train", "validation"):
        shares = [(number(at(line, split, "samples")) or 0.0, line) for line in kept["shares"]]
        samples = sum(weight for weight, _ in shares)
        merged[split] = {"samples": samples} if samples else None
        for key in ("loss", "accuracy") if samples else ():
            values = [(weight, real(figure(at(line, split, key)))) for weight, line in shares if weight]
            known = [weight * value for weight, value in values if value is not None]
            merged[split][key] = figure(sum(known) / samples) if len(known) == len(values) else None
    return merged
