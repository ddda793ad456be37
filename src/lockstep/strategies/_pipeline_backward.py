"""The backward pass of a stage, whole or in two halves: what the stage before waits for, and the rest.

The gradient of a stage's input (``I``) needs no gradient of a weight, so those (``W``) can be put off until the rank
would idle: Qi et al., "Zero Bubble Pipeline Parallelism", arXiv 2401.10241. In the forward pass the output of each
module with weights is noted. ``I`` finds the gradients of these outputs on its way back to the input, and ``W`` goes
the one step from each output to the module's weights. A weight for which that one step is not all there is (its
module is called twice, another module uses it as well) has its gradient computed with ``I``, where it is right.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, _engine_run_backward, get_gradient_edge

from lockstep.strategies._autograd_graph import leaf_uses


@dataclass
class Pass:
    """What a forward pass of one micro-batch through one stage leaves for its backward pass."""

    given: Tensor  # the stage's input, (rows, ...)
    result: Tensor  # its output; of the last stage, the loss
    edges: list[tuple[nn.Module, GradientEdge]] = field(default_factory=list)
    weights: list[tuple[GradientEdge, list[nn.Parameter], Tensor]] = field(default_factory=list)

    @property
    def input_gradient(self) -> Tensor:
        """What the stage before is sent; zeros where the output does not depend on the input."""
        return torch.zeros_like(self.given) if self.given.grad is None else self.given.grad


class Backward:
    """The backward passes of one stage. ``split`` is whether they come in two halves."""

    def __init__(self, parts: Iterable[nn.Module], split: bool) -> None:
        self._noted: list[tuple[nn.Module, GradientEdge]] | None = None
        parts = list(parts)
        self.parameters = _unique(p for part in parts for p in part.parameters() if p.requires_grad)
        for module in {each for part in parts for each in part.modules()} if split else ():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.register_forward_hook(self._note)

    def _note(self, module: nn.Module, _: Any, output: Any) -> None:
        if self._noted is not None and isinstance(output, Tensor) and output.requires_grad:
            self._noted.append((module, get_gradient_edge(output)))

    def begin(self) -> None:
        """Note outputs from here on."""
        self._noted = []

    def end(self, given: Tensor, result: Tensor) -> Pass:
        """The forward pass is over."""
        noted, self._noted = self._noted or [], None
        return Pass(given, result, noted)

    def whole(self, made: Pass, gradient: Tensor | None) -> None:
        """Add to the gradients of the weights, and leave that of the input."""
        if made.result.requires_grad:
            _engine([made.result], [gradient], [], accumulate=True)

    def of_input(self, made: Pass, gradient: Tensor | None) -> None:
        """The first half."""
        if not made.result.requires_grad:
            return
        apart = self._separable(made)
        later = {parameter for _, parameters in apart for parameter in parameters}
        now = [parameter for parameter in self.parameters if parameter not in later]
        wanted: list[Tensor | GradientEdge] = [edge for edge, _ in apart]
        wanted += now
        if made.given.requires_grad:
            wanted.append(made.given)
        found = _engine([made.result], [gradient], wanted, keep=bool(apart))
        if made.given.requires_grad:
            made.given.grad = found[-1]
        _add(now, found[len(apart) : len(apart) + len(now)])
        made.weights = [
            (edge, parameters, each)
            for (edge, parameters), each in zip(apart, found, strict=False)
            if each is not None
        ]

    def of_weights(self, made: Pass) -> None:
        """The second half. Frees what the forward pass kept."""
        for edge, parameters, gradient in made.weights:
            # One module may stand in another: nodes can be passed twice, and are freed with the edges below.
            _add(parameters, _engine([edge], [gradient], parameters, keep=True))
        made.weights, made.edges = [], []

    def _separable(self, made: Pass) -> list[tuple[GradientEdge, list[nn.Parameter]]]:
        uses = leaf_uses(made.result)
        calls: dict[nn.Module, int] = {}
        for module, _ in made.edges:
            calls[module] = calls.get(module, 0) + 1
        found = []
        for module, edge in made.edges:
            own = [p for p in module.parameters(recurse=False) if p.requires_grad and uses.get(p) == 1]
            if own and calls[module] == 1:
                found.append((edge, own))
        return found


def _engine(
    outputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[Tensor | GradientEdge],
    *,
    keep: bool = False,
    accumulate: bool = False,
) -> Sequence[Tensor | None]:
    """What torch.autograd.grad and backward do, without their check of shapes.

    The check imports sympy, which would take 2 s of every rank's first step. ``keep`` keeps the graph for another pass.
    """
    seeds = [
        torch.ones_like(out) if each is None and isinstance(out, Tensor) else each
        for out, each in zip(outputs, gradients, strict=True)
    ]
    found: Sequence[Tensor | None] = _engine_run_backward(
        tuple(outputs), tuple(seeds), keep, False, tuple(wanted), True, accumulate_grad=accumulate
    )
    return found


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            # A copy: for one row the gradients of two weights can be the same memory, which += would change for both.
            parameter.grad = gradient.detach().clone()
        else:
            parameter.grad += gradient


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list(dict.fromkeys(parameters))
