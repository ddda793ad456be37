"""A model whose layers wait instead of computing, so that a pipeline can be timed on fewer cores than ranks."""

import math
import time
from typing import Any

import torch
from torch import Tensor, nn


class _WaitForInput(torch.autograd.Function):
    """The identity; forward and backward take their time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        time.sleep(seconds)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradients[0], None


class _WaitForWeights(torch.autograd.Function):
    """The identity; backward alone takes its time."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return weights.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        time.sleep(ctx.seconds)
        return gradients[0], None


class Waiting(nn.Module):
    """Adds a bias. Forward, the gradient of the input and that of the bias take as long as each other."""

    def __init__(self, width: int, seconds: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.seconds = seconds

    def forward(self, values: Tensor) -> Tensor:
        """(batch, width) to (batch, width)."""
        found: Tensor = _WaitForInput.apply(values, self.seconds) + _WaitForWeights.apply(
            self.bias, self.seconds
        )  # type: ignore[no-untyped-call]
        return found


class First(nn.Module):
    """The first so many numbers of each sample."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, values: Tensor) -> Tensor:
        """(batch, width) to (batch, count)."""
        return values[:, : self.count]


def layers(
    input_shape: tuple[int, ...], num_classes: int, *, depth: int = 8, milliseconds: float = 5.0
) -> nn.Module:
    """(batch, inputs) to (batch, num_classes)."""
    width = math.prod(input_shape)
    assert width >= num_classes
    parts: list[nn.Module] = [Waiting(width, milliseconds / 1000) for _ in range(depth)]
    return nn.Sequential(nn.Flatten(), *parts, First(num_classes))
