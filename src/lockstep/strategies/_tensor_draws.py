"""Random draws under tensor parallelism: alike where ranks hold the same values, different where they do not.

Between a colwise and a rowwise layer each rank has columns of its own, and a dropout there must not mask the same
places on all of them. Everywhere else the ranks hold the same values and must draw the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lockstep.strategies._shares import key
from lockstep.strategies._tensor_plan import Way

LARGEST = 2**62  # of the numbers that a column's own stream is keyed by


class Draws:
    """Two streams: that of the group of ranks, and this rank's own, taken up at colwise layers until a rowwise one.

    The own one is keyed by a number that the common one draws, so it is another for every micro-batch and every call
    of a layer. Which stream is on, and what the common one goes on from, is told by the generator's own seed: where
    activations were dropped, the generator is put back to where it stood, in the middle of either stream, and what is
    computed again draws as it did.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Mapping[str, Way],
        column: int,
        generator: torch.Generator,
        may_draw: bool = True,
    ) -> None:
        self._column, self._generator = column, generator  # the device's, which layers draw from
        self._left: dict[int, torch.Tensor] = {}  # by the seed of the own stream: the common one's state
        if not may_draw:
            return
        for name, way in plan.items():
            if way.kind == "colwise":
                module.get_submodule(name).register_forward_hook(self._leave)
            elif way.kind == "rowwise":
                module.get_submodule(name).register_forward_pre_hook(self._return)

    def begin(self) -> None:
        """A new pass; nothing of the one before is computed again."""
        self._return()
        self._left.clear()

    def _leave(self, module: nn.Module, *_: Any) -> None:
        generator = self._generator
        if module.training and generator.initial_seed() not in self._left:
            number = int(torch.randint(LARGEST, (), generator=generator, device=generator.device))
            own = key(number, "column", self._column)
            self._left[own] = generator.get_state()
            generator.manual_seed(own)

    def _return(self, *_: Any) -> None:
        common = self._left.get(self._generator.initial_seed())
        if common is not None:
            self._generator.set_state(common)
