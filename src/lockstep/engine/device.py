"""The device that a rank computes on: one GPU for each rank, or the processor's cores."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.engine.batches import Batches
from lockstep.errors import RunFailed
from lockstep.parameters import Training
from lockstep.strategies.base import Batch

HOST = torch.device("cpu")


def choose(plan: dict[str, Any], index: int, training: Training) -> torch.device:
    """The device of rank ``index``, ready to be used."""
    if plan.get("device", "cpu") != "cuda":
        return HOST
    if not torch.cuda.is_available():
        raise RunFailed(
            f"distributed.device is cuda, but torch {torch.__version__} cannot use a GPU here; allowed: cpu, auto"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    repeat_bits(training.compile)
    return device


def repeat_bits(compiled: bool) -> None:
    """Have a GPU sum in the same order every time, where it knows how to; where it does not, torch warns in the log.

    Left alone, sums by atomic additions and the choice among algorithms by their speed change bits from run to run.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a process first multiplies there
    if compiled:
        torch.use_deterministic_algorithms(
            True, warn_only=True
        )  # tells the compiler too, which it imports (6 s)
    else:
        torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def placed(module: nn.Module, device: torch.device, training: Training) -> nn.Module:
    """The module on its device; images' weights with their channels last where that was asked for."""
    if training.channels_last:
        module = module.to(memory_format=torch.channels_last)
    return module if device == HOST else module.to(device)


class OnDevice(Batches):
    """The same batches, sent to a GPU while it computes: from pinned memory, without waiting for the copy."""

    def __init__(self, batches: Batches, device: torch.device, channels_last: bool) -> None:
        self.__dict__.update(vars(batches))
        self._device, self._channels_last = device, channels_last

    def take(self, rows: Tensor, epoch: int | None, global_samples: int, weight: float = 1.0) -> Batch:
        """These rows, on this rank's device."""
        batch = super().take(rows, epoch, global_samples, weight)
        return replace(batch, features=self._sent(batch.features), labels=self._sent(batch.labels))

    def _sent(self, tensor: Tensor) -> Tensor:
        if self._channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor if self._device == HOST else tensor.pin_memory().to(self._device, non_blocking=True)


def peak_bytes(device: torch.device) -> int | None:
    """The most GPU memory that tensors of this process ever took; None on the processor."""
    return None if device == HOST else torch.cuda.max_memory_allocated(device)
