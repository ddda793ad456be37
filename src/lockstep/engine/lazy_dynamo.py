"""Puts off importing torch._dynamo, which takes longer than the rest of torch, until something compiles.

The first optimizer, the first process group and the first DDP wrapper of a process import torch._dynamo (4 s
and 130 MB on one core) only to ask it four things whose answers are known while nothing is compiled, and the first
block whose activations are dropped a fifth. A module that gives those answers stands in its place; any other use of
it, torch.compile first of all, brings in the real one at that moment.
See docs/adr/0003-torch-dynamo-is-imported-when-used.md.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


class _Later(ModuleType):
    """A stand-in for a module: known answers at once, everything else from the real module."""

    def __init__(self, name: str, **answers: object) -> None:
        super().__init__(name)
        self.__dict__.update(answers)

    def __getattr__(self, attribute: str) -> Any:
        # Tools that walk sys.modules look for names such as __file__; only the search for submodules counts.
        if attribute.startswith("__") and attribute != "__path__":
            raise AttributeError(attribute)
        return getattr(self._real(), attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        setattr(self._real(), attribute, value)  # a setting: whoever makes one means the real module

    def _real(self) -> Any:
        real = _bring_in()
        for part in self.__name__.removeprefix(NAME).split(".")[1:]:
            real = getattr(real, part)
        return real


def _bring_in() -> Any:
    """Import the real module, as if nobody had stood in for it."""
    if isinstance(sys.modules.get(NAME), _Later):
        del sys.modules[NAME]
        torch.__dict__.pop("_dynamo", None)
    module = importlib.import_module(NAME)
    torch._dynamo = module
    return module


def _uncompiled(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """What torch._dynamo.disable comes to while nothing is compiled: the function itself."""
    return function if function is not None else _uncompiled


def install() -> None:
    """Stand in for torch._dynamo in this process, unless it has been imported already."""
    if NAME in sys.modules:
        return
    stand_in = _Later(
        NAME,
        disable=_uncompiled,
        graph_break=lambda *_, **__: None,
        utils=_Later(f"{NAME}.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer"),
        # What torch.utils.checkpoint hands on to a trace of the second forward pass, where there is one.
        config=_Later(f"{NAME}.config", error_on_nested_fx_trace=True),
        trace_rules=_Later(f"{NAME}.trace_rules", clear_lru_cache=lambda: None),
    )
    sys.modules[NAME] = stand_in
    torch._dynamo = stand_in
