"""How long each part of a model takes, for stages that take equally long."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lockstep.strategies._passes import Passes
from lockstep.strategies._pipeline_cut import Unit
from lockstep.strategies.base import clock

REPETITIONS = 5  # the quickest counts: whatever else the machine does only makes them slower


def measured_costs(chain: Sequence[Unit], features: Tensor, passes: Passes) -> list[float]:
    """Seconds of a forward and backward pass of each unit on some rows. Leaves no gradients."""
    inputs = [features]
    with torch.no_grad(), passes.autocast():
        for unit in chain[:-1]:
            inputs.append(unit(inputs[-1]))
    return [
        min(_seconds(unit, given, passes) for _ in range(REPETITIONS))
        for unit, given in zip(chain, inputs, strict=True)
    ]


def _seconds(unit: Unit, given: Tensor, passes: Passes) -> float:
    value = given.detach().clone()
    if value.is_floating_point():
        value.requires_grad_()
    passes.finish()
    began = clock()
    with passes.autocast():
        output = unit(value)
    output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]
    passes.finish()
    seconds = clock() - began
    for part in unit.parts:
        part.zero_grad(set_to_none=True)
    return seconds
