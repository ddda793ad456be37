"""Parameters that are a single number: FSDP2 cannot cut them up, so every rank holds them whole, and sums gradients."""

import torch
from torch import Tensor, nn


def numbers(module: nn.Module) -> set[nn.Parameter]:
    """Those of a module, which FSDP is told to leave alone; and those without any number, which it cannot sum."""
    return {parameter for parameter in module.parameters() if not (parameter.dim() and parameter.numel())}


class Numbers:
    """What a rank does for them itself, in the sum that it takes for the norm anyway."""

    def __init__(self, module: nn.Module, ranks: int) -> None:
        self._own = [p for p in module.parameters() if not p.dim() and p.requires_grad]
        self._ranks = ranks

    def told(self) -> list[float]:
        """This rank's gradients, and for each 1 where there is one: to be summed over all ranks."""
        gradients = [parameter.grad for parameter in self._own]
        return [
            *(0.0 if gradient is None else float(gradient) for gradient in gradients),
            *(float(gradient is not None) for gradient in gradients),
        ]

    def take(self, sums: Tensor) -> list[Tensor]:
        """Of what all told: the mean, as FSDP takes it of all others, where any rank has one; these gradients."""
        means = sums[: len(self._own)] / self._ranks
        for parameter, mean, having in zip(self._own, means, sums[len(self._own) :], strict=True):
            parameter.grad = torch.full_like(parameter, float(mean)) if having else None
        return [parameter.grad for parameter in self._own if parameter.grad is not None]
