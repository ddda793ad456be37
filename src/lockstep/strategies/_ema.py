"""An exponential moving average of the weights, kept where the optimizer keeps what belongs to a parameter.

So it is saved, resumed, sliced and moved between strategies like any other optimizer state, under ``name/ema``.
Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, with the plain mean replaced by one
that forgets.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SLOT = "ema"


@torch.no_grad()
def advance(optimizer: Optimizer, decay: float) -> None:
    """After a step, while its gradients still stand: average = decay * average + (1 - decay) * weights.

    A parameter's average begins with the weights after its first update. One that has never had a gradient has none:
    an optimizer takes a parameter with any state for one that it has seen already.
    """
    weights, averages = [], []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            slots = (
                optimizer.state[parameter]
                if parameter.grad is not None
                else optimizer.state.get(parameter, {})
            )
            if SLOT in slots:
                weights.append(parameter)
                averages.append(slots[SLOT])
            elif parameter.grad is not None:
                slots[SLOT] = parameter.detach().clone()
    if averages:
        torch._foreach_lerp_(averages, weights, 1 - decay)


def aliases(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that stand in several places, and the first, which their state is called by."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first.setdefault(parameter, name)
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if first[parameter] != name}


def averaged(state: Mapping[str, Mapping[str, Tensor]], also: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The weights of a checkpoint with averages in the place of those that have one; None where none has.

    ``also``: the ``aliases`` of the model, so that a weight is the same under all of its names.
    """
    suffix = f"/{SLOT}"
    averages = {
        name.removesuffix(suffix): tensor
        for name, tensor in state["optimizer"].items()
        if name.endswith(suffix)
    }
    alike = {name: averages[first] for name, first in also.items() if first in averages}
    return {**state["model"], **averages, **alike} if averages else None
