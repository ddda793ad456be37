"""What a pass through a model may change, and how it is put back: for every pass that is not training.

A forward pass can write to weights and buffers (batch statistics, layers that set themselves from their first batch),
to plain attributes (counters, caches), to modes, and to generators of random numbers.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lockstep.strategies._plain_state import PlainState, same_bits

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


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


def _same_state(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else str(one) == str(other)


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
        self._tensors = [
            (tensor, tensor.detach().clone()) for tensor in tensors.values() if not is_lazy(tensor)
        ]
        known = {id(each) for each in (*module.modules(), *tensors_of(module).values())}
        self._parts = [_PartState(part, parameters, known) for part in module.modules()]
        self._generators = [(each, _generator_state(each)) for _, each in own_generators(module)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what has changed; gradients are left alone."""
        for part in self._parts:
            part.restore()
        for tensor, value in self._tensors:
            if not same_bits(tensor, value):  # else it may be of memory that cannot be written to
                tensor.detach().copy_(value)
        for generator, state in self._generators:
            _set_generator_state(generator, state)
        self._random.restore()

    def moved_generators(self, module: nn.Module) -> list[str]:
        """Generators of the model's own that have drawn, by name."""
        before = {id(generator): state for generator, state in self._generators}
        return [
            name
            for name, generator in own_generators(module)
            if id(generator) in before and not _same_state(before[id(generator)], _generator_state(generator))
        ]

    def changed_attributes(self) -> list[str]:
        """Plain attributes, as ``Class.name``, that a pass has changed and no checkpoint holds."""
        return sorted({name for part in self._parts for name in part.changed()})


class _PartState:
    """One module's own: its mode, which tensors it names, and its plain attributes."""

    def __init__(self, part: nn.Module, parameters: bool, known: set[int]) -> None:
        self._part = part
        places: list[dict[str, Any]] = [part._buffers]
        places += [part._parameters] if parameters else []
        self._named = [(place, dict(place)) for place in places]
        self._attributes = _plain_attributes(part)
        self._contents = {name: PlainState(value, known) for name, value in self._attributes.items()}

    def changed(self) -> list[str]:
        """A tensor that an attribute names is passed over: most are computed anew in each pass."""
        now = _plain_attributes(self._part)
        names = [
            name
            for name, value in now.items()
            if name != "training"
            and not isinstance(value, Tensor)
            and (name not in self._contents or self._contents[name].changed(value))
        ]
        return [f"{type(self._part).__name__}.{name}" for name in names]

    def restore(self) -> None:
        for place, named in self._named:
            place.clear()
            place.update(named)
        own = vars(self._part)
        for name in _plain_attributes(self._part).keys() - self._attributes.keys():
            del own[name]
        own.update(self._attributes)
        for content in self._contents.values():
            content.restore()


def _plain_attributes(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _OF_EVERY_MODULE}


def is_lazy(tensor: Tensor) -> bool:
    """Whether a tensor of a lazy module has no shape before the first pass."""
    return isinstance(tensor, UninitializedBuffer | UninitializedParameter)


@torch.no_grad()
def initialise_lazy(module: nn.Module, features: Tensor) -> None:
    """Let a row through where a model has lazy modules, which get their weights then: drawn as the seed says."""
    if any(is_lazy(tensor) for tensor in tensors_of(module).values()):
        with evaluating(module):
            module(features[:1])


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
