"""Activation checkpointing: a block keeps its input only, and computes the rest again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

import functools
import itertools
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.errors import RunFailed
from lockstep.strategies._blocks import IN_RUNS, blocks, runs


def drop_activations(module: nn.Module) -> list[str]:
    """Let the model's blocks drop what they can compute again; the names of the blocks.

    A plain Sequential of layers, whose layers have nothing inside that could be dropped, is cut into the square root
    of their number of runs, and each run is a block. The same operations run again in the same order, with the same
    draws, so no bit of a gradient changes (what a block counts in its forward pass, as BatchNorm does, is counted
    twice). Names of parameters stay as they are.
    """
    if type(module) is nn.Sequential and all(not [*child.children()] for child in module):
        return _in_runs(module)
    found = blocks(module)
    if not found:
        raise RunFailed(
            "training.activation_checkpointing: the model has no blocks to do it for: allowed are models that are a "
            "Sequential, hold a ModuleList, or have a method blocks() that lists their parts"
        )
    for part in found.values():
        part.forward = functools.partial(_recomputing, part, part.forward)
    return [*found]


def _in_runs(module: nn.Sequential) -> list[str]:
    weighted = [index for index, child in enumerate(module) if [*child.parameters()]]
    starts = [weighted[run.start] if run.start else 0 for run in runs(len(weighted))]
    bounds = [*itertools.pairwise([*starts, len(module)])]
    parts = [nn.Sequential(*[module[index] for index in range(first, stop)]) for first, stop in bounds]

    def forward(values: Tensor) -> Tensor:
        for part in parts:
            values = _recomputing(module, part, values)
        return values

    module.forward = forward  # type: ignore[method-assign]
    setattr(module, IN_RUNS, True)  # for who calls the layers one by one
    return [f"{first} to {stop - 1}" for first, stop in bounds]


def _recomputing(part: nn.Module, forward: Any, *arguments: Any, **options: Any) -> Any:
    if not part.training:
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)
