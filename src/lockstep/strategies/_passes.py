"""How a rank's share goes through the model: in which pieces, in which precision, and how small losses survive it."""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.errors import RunFailed
from lockstep.strategies._module_state import own_generators, seed_all, seed_generator

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LossScale:
    """Multiplies the loss, so that small gradients do not vanish in fp16; ``undo`` divides the gradients again.

    Dynamic: doubled after ``GOOD_STEPS`` steps without overflow, halved at an overflow, whose step is then left
    out (Micikevicius et al., "Mixed Precision Training", ICLR 2018). Powers of two change no bit of a number
    that fits, so a step that overflows nowhere is the same step at any scale. It is a pure function of the
    steps, the same on every rank, because it looks at the gradients after they were reduced.
    """

    FIRST, GOOD_STEPS = 65536.0, 2000

    def __init__(self) -> None:
        self.on = False
        self.value = 1.0
        self.good_steps = 0
        self.overflowed = False

    def switch_on(self) -> None:
        """From now on losses are scaled."""
        self.on, self.value = True, self.FIRST

    def undo(self, gradients: list[Tensor], norm: float) -> float:
        """Unscale the gradients in place; their norm. Where they overflowed: 0.0, and the step is to be left out."""
        if not self.on:
            return norm
        self.overflowed = not math.isfinite(norm)
        if self.overflowed:
            self._halve()
            return 0.0
        torch._foreach_mul_(gradients, 1 / self.value)
        unscaled = norm / self.value
        self.good_steps += 1
        if self.good_steps == self.GOOD_STEPS:
            self.value, self.good_steps = self.value * 2, 0
        return unscaled

    def _halve(self) -> None:
        self.value, self.good_steps = self.value / 2, 0
        if self.value < 1:
            raise RunFailed(
                "the gradients overflow in fp16 even when the loss is not scaled: nothing was applied. Try "
                "training.precision=bf16 or fp32, or a smaller training.learning_rate",
                "not finite",
            )

    def state(self) -> dict[str, float] | None:
        """What a checkpoint keeps; None where nothing is scaled."""
        return {"value": self.value, "good_steps": self.good_steps} if self.on else None

    def notes(self) -> dict[str, float | bool]:
        """For the step's line of metrics."""
        return {"loss_scale": self.value, "skipped": self.overflowed} if self.on else {}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on with the scale of a checkpoint; one that was trained in another precision has none."""
        if self.on and state:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])


class Passes:
    """The options of a forward and backward pass. Weights, gradients and sums over ranks stay in full precision."""

    def __init__(self) -> None:
        self.micro_batch_size: int | None = None  # samples at once; None: the rank's whole share
        self.dtype: torch.dtype | None = None  # what autocast computes in
        self.device = "cpu"
        self.loss_scale = LossScale()
        self._own_generators: list[Any] = []

    def choose(self, precision: str, micro_batch_size: int | None) -> None:
        """Take over what the parameters say."""
        self.micro_batch_size = micro_batch_size
        self.dtype = _AUTOCAST.get(precision)
        if precision == "fp16":
            self.loss_scale.switch_on()

    @property
    def generator(self) -> torch.Generator:
        """What random draws of the forward pass come from: the default one of the device."""
        on_gpu = self.device == "cuda"
        return (
            torch.cuda.default_generators[torch.cuda.current_device()] if on_gpu else torch.default_generator
        )

    def find_generators(self, module: nn.Module) -> None:
        """Take note of generators that parts of the model keep: they are seeded with the others."""
        self._own_generators = [generator for _, generator in own_generators(module)]

    def seed(self, number: int) -> None:
        """Seed whatever the next pass may draw from: on the device, on the host, and the model's own generators."""
        seed_all(number)
        if self.device == "cuda":
            torch.cuda.manual_seed(number)
        for generator in self._own_generators:
            seed_generator(generator, number)

    def finish(self) -> None:
        """Wait until the device has done what it was asked for, so that a clock tells the truth."""
        torch.get_device_module(self.device).synchronize()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around the forward pass."""
        return torch.autocast(self.device, self.dtype) if self.dtype else contextlib.nullcontext()

    def full_precision(self, logits: Tensor) -> Tensor:
        """What the loss is computed from: its sums are too long for 8 or 11 bits."""
        return logits.float() if self.dtype else logits
