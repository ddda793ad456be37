"""What a model keeps outside of its parameters and buffers: plain attributes, containers and objects of its own.

No checkpoint holds these. They are followed to any depth, so that a pass that is not training can be undone.
"""

import copy
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEEPEST = 8
_CONTAINERS = (list, dict, set, bytearray, deque)
_NO_STATE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)


class PlainState:
    """A copy of one value and of all that it leads to; ``known`` are ids of what is kept elsewhere."""

    def __init__(self, value: Any, known: set[int]) -> None:
        self._value = value
        self._saved: list[tuple[Any, Any]] = []
        self._follow(value, set(known), 0)

    def _follow(self, value: Any, seen: set[int], depth: int) -> None:
        if id(value) in seen or depth > DEEPEST:
            return
        inner: list[Any] = []
        if isinstance(value, Tensor):
            if value.is_meta or value.layout != torch.strided:
                return
            self._saved.append((value, value.detach().clone()))
        elif isinstance(value, (np.ndarray, *_CONTAINERS)):
            self._saved.append((value, copy.copy(value)))
            if isinstance(value, dict):
                inner = list(value.values())
            elif isinstance(value, (list, deque)):
                inner = list(value)
        elif isinstance(value, tuple):
            inner = list(value)
        elif _keeps_state(value):
            self._saved.append((value, dict(vars(value))))
            inner = list(vars(value).values())
        else:
            return
        seen.add(id(value))
        for each in inner:
            self._follow(each, seen, depth + 1)

    def changed(self, now: Any) -> bool:
        """Whether the attribute has another value now, or what it leads to has changed."""
        if now is not self._value and not _alike(now, self._value):
            return True
        return any(not _alike(_content(value), saved) for value, saved in self._saved)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the contents back into the same objects."""
        for value, saved in self._saved:
            if isinstance(value, Tensor):
                if not same_bits(value, saved):
                    value.detach().copy_(saved)
            elif isinstance(value, np.ndarray):
                if value.flags.writeable:
                    value[...] = saved
            elif isinstance(value, (list, bytearray)):
                value[:] = saved
            else:
                place = value if isinstance(value, (dict, set, deque)) else vars(value)
                place.clear()
                (place.extend if isinstance(place, deque) else place.update)(saved)


def _keeps_state(value: Any) -> bool:
    """An object of a class of the user's own, with attributes."""
    if isinstance(value, _NO_STATE) or not isinstance(getattr(value, "__dict__", None), dict):
        return False
    return type(value).__module__.partition(".")[0] not in (
        "torch",
        "numpy",
        "builtins",
        "functools",
        "typing",
    )


def _content(value: Any) -> Any:
    return value if isinstance(value, (Tensor, np.ndarray, *_CONTAINERS)) else vars(value)


_PLAIN = (bool, int, float, complex, str, bytes)


def _alike(one: Any, other: Any) -> bool:
    """Containers by what they hold, and what they hold by identity where it is no plain value."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, Tensor):
        same = same_bits(one, other)
    elif isinstance(one, np.ndarray):
        same = bool(np.array_equal(one, other))
    elif isinstance(one, dict):
        same = one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    elif isinstance(one, (list, tuple, deque)):
        same = len(one) == len(other) and all(map(_same, one, other))
    else:
        same = isinstance(one, (*_PLAIN, set, bytearray)) and one == other
    return same


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and one == other)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(
        torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, 0, 0, True))
    )
