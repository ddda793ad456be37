"""How many bytes a rank holds: as predicted before anything is started, and as measured while it trains."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_SLOTS = {"adam": 2, "adamw": 2}  # exp_avg and exp_avg_sq
_STEP_BYTES = 4  # Adam counts a parameter's updates in a scalar of its own


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank that last from step to step; ``gradients`` stand between backward pass and update."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them at once."""
        return self.parameters + self.gradients + self.optimizer

    def record(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


def predicted(
    module: nn.Module, held: Mapping[str, int], optimizer: str, options: Mapping[str, Any], ema: bool
) -> Memory:
    """From a module (of any device, also meta) and how many elements of each parameter the rank holds."""
    slots = _SLOTS.get(optimizer, int(bool(options.get("momentum")))) + ema
    parameters = gradients = counts = 0
    for name, parameter in module.named_parameters():
        size = held[name] * parameter.element_size()
        parameters += size
        if parameter.requires_grad and held[name]:
            gradients += size
            counts += optimizer in _SLOTS
    return Memory(parameters, gradients, gradients * slots + counts * _STEP_BYTES)


def parameter_bytes(module: nn.Module) -> int:
    """What a rank holds of the parameters."""
    return _bytes(module.parameters())


def gradient_bytes(module: nn.Module) -> int:
    """What stands in ``.grad``; where those are views of a bucket, the bucket."""
    return _bytes(parameter.grad for parameter in module.parameters() if parameter.grad is not None)


def optimizer_bytes(optimizer: Optimizer | None) -> int:
    """What the optimizer keeps."""
    slots = optimizer.state.values() if optimizer is not None else ()
    return _bytes(value for slot in slots for value in slot.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the memory behind them, none counted twice."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        local = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
        storage = local.untyped_storage()
        storages[storage.data_ptr()] = max(storage.nbytes(), storages.get(storage.data_ptr(), 0))
    return sum(storages.values())
