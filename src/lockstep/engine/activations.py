"""Activation checkpointing: a block keeps its input only, and computes the rest again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

import functools
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from lockstep.errors import RunFailed
from lockstep.strategies._blocks import blocks


def drop_activations(module: nn.Module) -> list[str]:
    """Let each block of the model drop what it can compute again; the names of the blocks.

    The same operations run again in the same order, with the same draws, so no bit of a gradient changes (what a
    block counts in its forward pass, as BatchNorm does, is counted twice). Names of parameters stay as they are.
    """
    found = blocks(module)
    if not found:
        raise RunFailed(
            "training.activation_checkpointing: the model has no blocks to do it for: allowed are models that are a "
            "Sequential, hold a ModuleList, or have a method blocks() that lists their parts"
        )
    for part in found.values():
        part.forward = functools.partial(_recomputing, part, part.forward)
    return [*found]


def _recomputing(part: nn.Module, forward: Any, *arguments: Any, **options: Any) -> Any:
    if not part.training:
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)
