"""Random draws under tensor parallelism: alike where ranks hold the same values, different where they do not.

Between a colwise and a rowwise layer each rank has columns of its own, and a dropout there must not mask the same
places on all of them. Everywhere else the ranks hold the same values and must draw the same.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lockstep.strategies._tensor_plan import Way


class Draws:
    """Two streams: that of the group of ranks, and this rank's own, taken up at colwise layers until a rowwise one.

    The own one begins anew at each layer, by its name: a block whose activations were dropped draws the same when it
    is computed again, whatever else was drawn meanwhile.
    """

    def __init__(self, module: nn.Module, plan: Mapping[str, Way], seed_own: Callable[[str], None]) -> None:
        self._seed_own = seed_own
        self._common: torch.Tensor | None = None  # the state of the common stream, while it is left
        if not any(_draws(part) for part in module.modules()):
            return
        for name, way in plan.items():
            if way.kind == "colwise":
                module.get_submodule(name).register_forward_hook(functools.partial(self._leave, name))
            elif way.kind == "rowwise":
                module.get_submodule(name).register_forward_pre_hook(self._return)

    def begin(self) -> None:
        """A new pass."""
        self._common = None

    def _leave(self, layer: str, module: nn.Module, *_: Any) -> None:
        if self._common is None and module.training:
            self._common = torch.default_generator.get_state()
            self._seed_own(layer)

    def _return(self, *_: Any) -> None:
        if self._common is not None:
            torch.default_generator.set_state(self._common)
            self._common = None


def _draws(part: nn.Module) -> bool:
    return isinstance(getattr(part, "dropout", None), float) or isinstance(
        part, nn.modules.dropout._DropoutNd
    )
