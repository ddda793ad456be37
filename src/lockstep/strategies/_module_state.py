"""What a pass through a model may change, and how it is put back: for every pass that is not training.

A forward pass can write to weights and buffers (batch statistics, layers that set themselves from their first batch),
to plain attributes (counters, caches), to modes, and to generators of random numbers.
"""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_CONTAINERS = (list, dict, set, bytearray)


def seed_all(number: int) -> None:
    """Seed every process-wide generator on the host that a model may draw from: torch's, numpy's and Python's."""
    torch.default_generator.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


class RandomState:
    """Where the process-wide generators stand."""

    def __init__(self) -> None:
        self.torch = torch.default_generator.get_state()
        self.numpy = np.random.get_state()
        self.python = random.getstate()
        self.devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        """Put them back."""
        torch.default_generator.set_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
        for number, state in enumerate(self.devices):
            torch.cuda.set_rng_state(state, number)

    def differs(self, other: "RandomState") -> bool:
        """Whether any of them stands elsewhere than in the other."""
        (kind, keys, *rest), (other_kind, other_keys, *other_rest) = self.numpy, other.numpy
        return not (
            torch.equal(self.torch, other.torch)
            and all(map(torch.equal, self.devices, other.devices))
            and (kind, rest) == (other_kind, other_rest)
            and np.array_equal(keys, other_keys)
            and self.python == other.python
        )


def own_generators(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Generators that parts of a model keep as attributes, by name."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, kinds):
                yield f"{prefix}.{name}" if prefix else name, value


def seed_generator(generator: Any, number: int) -> None:
    """Seed one of ``own_generators``."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(number).state
    else:
        generator.seed(number % 2**32)


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.getstate()


def _set_generator_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, non-persistent ones too, under its first name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class ModuleState:
    """A copy of all that a pass may change. ``restore`` puts it back into the same tensors and containers.

    Without ``parameters`` it costs little, and may be taken of a model whose parameters are sharded.
    """

    def __init__(self, module: nn.Module, *, parameters: bool = True) -> None:
        self._random = RandomState()
        tensors = tensors_of(module) if parameters else dict(module.named_buffers())
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
        self._parts = [_PartState(part, parameters) for part in module.modules()]
        self._generators = [(each, _generator_state(each)) for _, each in own_generators(module)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what has changed; gradients are left alone."""
        for part in self._parts:
            part.restore()
        for tensor, value in self._tensors:
            if not _same_bits(tensor, value):  # else it may be of memory that cannot be written to
                tensor.detach().copy_(value)
        for generator, state in self._generators:
            _set_generator_state(generator, state)
        self._random.restore()

    def changed_attributes(self) -> list[str]:
        """Plain attributes, as ``Class.name``, that a pass has changed and no checkpoint holds."""
        return sorted({name for part in self._parts for name in part.changed()})


class _PartState:
    """One module's own: its mode, which tensors it names, and its plain attributes with one level of containers."""

    def __init__(self, part: nn.Module, parameters: bool) -> None:
        self._part = part
        places: list[dict[str, Any]] = [part._buffers]
        places += [part._parameters] if parameters else []
        self._named = [(place, dict(place)) for place in places]
        self._attributes = {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}
        self._contents: dict[str, Any] = {
            name: value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
            for name, value in self._attributes.items()
            if isinstance(value, (*_CONTAINERS, Tensor, np.ndarray))
        }

    def changed(self) -> list[str]:
        now = {name: value for name, value in vars(self._part).items() if name not in _OF_EVERY_MODULE}
        names = [name for name in now if name != "training" and self._differs(name, now[name])]
        return [f"{type(self._part).__name__}.{name}" for name in names]

    def _differs(self, name: str, now: Any) -> bool:
        if name not in self._attributes:
            return True
        before = self._contents.get(name, self._attributes[name])
        if isinstance(now, Tensor):
            return not (isinstance(before, Tensor) and _same_bits(now, before))
        if isinstance(now, np.ndarray):
            return not (isinstance(before, np.ndarray) and np.array_equal(now, before))
        if isinstance(now, (bool, int, float, complex, str, bytes)):
            return type(now) is not type(before) or now != before
        if isinstance(now, _CONTAINERS):
            return len(now) != len(before)
        return now is not self._attributes[name]

    def restore(self) -> None:
        for place, named in self._named:
            place.clear()
            place.update(named)
        own = vars(self._part)
        for name in [name for name in own if name not in _OF_EVERY_MODULE and name not in self._attributes]:
            del own[name]
        own.update(self._attributes)
        for name, content in self._contents.items():
            value = self._attributes[name]
            if isinstance(value, Tensor):
                if not _same_bits(value, content):
                    value.detach().copy_(content)
            elif isinstance(value, np.ndarray):
                if value.flags.writeable:
                    value[...] = content
            elif isinstance(value, (list, bytearray)):
                value[:] = content
            else:
                value.clear()
                value.update(content)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(
        torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, 0, 0, True))
    )


@contextlib.contextmanager
def unchanged(module: nn.Module, *, parameters: bool = True) -> Iterator[None]:
    """Whatever passes are made inside, the model and the generators are afterwards as they were."""
    state = ModuleState(module, parameters=parameters)
    try:
        yield
    finally:
        state.restore()


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every part in evaluation mode; afterwards each is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
