"""What a model does, seen in a few passes on a copy of it before any rank is started.

Names of modules tell little: a layer may draw, write to its weights, count its calls, skip a branch or share memory in
any way that Python allows. So a copy goes through a few rows of the first batches, and what changed is compared.
From this come the caveats of a run, the refusals of strategies, and the figures that each strategy is held against.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.engine.batches import Batches
from lockstep.engine.metrics import combined, fingerprint
from lockstep.engine.refusals import constants
from lockstep.parameters import Parameters
from lockstep.strategies._loss import summed_loss
from lockstep.strategies._module_state import ModuleState, RandomState, evaluating, own_generators, tensors_of
from lockstep.strategies._observed import Observed, shared_memory
from lockstep.strategies._passes import Passes
from lockstep.strategies.base import Batch, key

ROWS = (
    8  # of a rank's share in one pass; fewer rows leave out more of a model that chooses its path by sample
)
PIECES = 8  # of a batch, as micro-batches make them
PASSES, LEAST_PASSES = 8, 3
SECONDS = 0.15  # after which no further pass is begun, once the least are made
LARGEST_BYTES = 4e9  # of weights: copying larger ones would cost more than is learned


@dataclass
class Reference:
    """Loss and gradients of the whole model, in evaluation mode, on the first rows of the first global batch."""

    rows: int
    loss: float
    gradients: dict[str, tuple[float, float]]  # by parameter: the sum of its elements, and of their squares
    elements: dict[str, int]
    weights: int  # a fingerprint of the initial state


def observe(module: nn.Module, batches: Batches, parameters: Parameters) -> tuple[Observed, Reference | None]:
    """Let a copy of the model, in its initial state, through some rows; it is changed by this.

    None in place of the reference where, in evaluation mode, the model draws, is not finite, or computes a sample
    otherwise for what is beside it: then nothing can be held against it.
    """
    began = time.monotonic()
    passes = Passes()
    passes.choose(parameters.training.precision, None)
    passes.find_generators(module)
    initial = ModuleState(module)
    seen = Observed(
        trained=[name for name, parameter in module.named_parameters() if parameter.requires_grad],
        constants=constants(module),
        shared_memory=shared_memory(module),
        evaluation_modes=_frozen(module),
    )
    watch = _Draws(module)
    prints: dict[str, set[int]] = {}
    unused: dict[str, int] = {}
    for number, batch in enumerate(_shares(batches, parameters)):
        if number >= LEAST_PASSES and time.monotonic() - began > SECONDS:
            break
        if number:
            _shake(module)
        before = _prints(module)
        passes.seed(key(parameters.seed, number, "observation"))
        watch.begin()
        loss = _loss(module, batch, passes)
        loss.backward()  # type: ignore[no-untyped-call]
        watch.end()
        seen.passes += 1
        for name, print_ in _prints(module).items():
            if before.get(name) != print_:
                prints.setdefault(name, set()).update([print_] if number else [])
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                unused[name] = unused.get(name, 0) + 1
        seen.attributes = sorted({*seen.attributes, *initial.changed_attributes()})
        module.zero_grad(set_to_none=True)
        initial.restore()
    seen.mixes_samples = not watch.names and _mixes(module, batches, passes, initial)
    own = dict(module.named_parameters())
    seen.unused = [*unused]
    seen.buffers = [name for name in prints if name not in own]
    seen.written = [name for name in prints if name in own]
    # The same start, other rows: what differs then, each rank would write otherwise.
    seen.written_by_sample = [name for name in seen.written if len(prints[name]) > 1]
    seen.draws = watch.names
    seen.generators = [name for name, _ in own_generators(module)]
    seen.gradient_hooks = _hooked(module)
    reference = _reference(module, batches, parameters, passes, seen)
    watch.remove()
    seen.seconds = time.monotonic() - began
    return seen, reference


@torch.no_grad()
def _shake(module: nn.Module) -> None:
    """Move every parameter a little, always alike: what is written may be what stands there at the start.

    A teacher that follows its student, for example, begins with the student's weights.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.numel():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.detach().add_(noise * 0.01)


def _shares(batches: Batches, parameters: Parameters) -> Iterator[Batch]:
    """A few rows of what each rank is going to see first, rank by rank and step by step."""
    ranks, steps = parameters.distributed.world_size, batches.steps_per_epoch
    for number in range(PASSES):
        rank, step = number % ranks, number // ranks
        if step >= steps:
            return
        whole, epoch = batches.whole(step)
        share = whole[len(whole) * rank // ranks : len(whole) * (rank + 1) // ranks][:ROWS]
        if len(share):
            yield batches.take(share, epoch, len(share))


def _loss(module: nn.Module, batch: Batch, passes: Passes) -> Tensor:
    with passes.autocast():
        logits = module(batch.features.clone())
    return summed_loss(passes.full_precision(logits), batch.labels) / batch.global_samples


def _prints(module: nn.Module) -> dict[str, int]:
    return {name: fingerprint(tensor) for name, tensor in tensors_of(module).items()}


@torch.no_grad()
def _mixes(module: nn.Module, batches: Batches, passes: Passes, initial: ModuleState) -> bool:
    """Whether the first rows come out otherwise where others are with them, in the modes of training."""
    rows = batches.whole(0)[0][:ROWS]
    few = max(len(rows) // 2, 2)
    if len(rows) <= few:
        return False
    batch, seen = batches.take(rows, None, len(rows)), []
    for features in (batch.features, batch.features[:few]):
        with passes.autocast():
            seen.append(module(features.clone())[:few].float())
        initial.restore()
    among_all, among_few = seen
    return not torch.allclose(among_all, among_few, rtol=1e-2, atol=1e-4, equal_nan=True)


def _frozen(module: nn.Module) -> list[str]:
    """Parts that the model's function left in evaluation mode, the outermost of them."""
    found: list[str] = []
    for name, part in module.named_modules():
        if not part.training and not any(not above or name.startswith(f"{above}.") for above in found):
            found.append(name)
    return found


def _hooked(module: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]


def _reference(
    module: nn.Module, batches: Batches, parameters: Parameters, passes: Passes, seen: Observed
) -> Reference | None:
    whole, _ = batches.whole(0)
    rows = min(len(whole), ROWS * parameters.distributed.world_size)
    weights = combined(_prints(module))
    state = ModuleState(module)
    with evaluating(module):
        drawn = RandomState()
        loss = _loss(module, batches.take(whole[:rows], None, rows), passes)
        loss.backward()  # type: ignore[no-untyped-call]
        seen.draws_in_evaluation = RandomState().differs(drawn)
    own = dict(module.named_parameters())
    now = _prints(module)
    state.restore()
    apart = _mixes_in_evaluation(module, batches, whole[:rows], parameters, passes)
    state.restore()
    before = _prints(module)
    seen.written_in_evaluation = [name for name in own if before[name] != now[name]]
    gradients = {
        name: (float(each.sum()), float(each.abs().square().sum()))
        for name, parameter in own.items()
        if parameter.grad is not None
        for each in [_wide(parameter.grad)]
    }
    finite = math.isfinite(value := float(loss.detach())) and all(
        math.isfinite(squares) for _, squares in gradients.values()
    )
    if seen.draws_in_evaluation or apart or not finite:
        return None
    elements = {name: parameter.numel() for name, parameter in own.items()}
    return Reference(rows, value, gradients, elements, weights)


@torch.no_grad()
def _mixes_in_evaluation(
    module: nn.Module, batches: Batches, rows: Tensor, parameters: Parameters, passes: Passes
) -> bool:
    """Whether rows come out otherwise by the pieces that ranks and micro-batches may make of them."""
    pieces = {parameters.distributed.world_size, min(PIECES, len(rows))} - {1}
    with evaluating(module), passes.autocast():
        together = module(batches.take(rows, None, len(rows)).features).float()
        for count in pieces:
            bounds = [len(rows) * number // count for number in range(count + 1)]
            parts = [
                module(batches.take(rows[first:stop], None, len(rows)).features).float()
                for first, stop in itertools.pairwise(bounds)
                if stop > first
            ]
            if not torch.allclose(torch.cat(parts), together, rtol=1e-2, atol=1e-4, equal_nan=True):
                return True
    return False


def _wide(gradient: Tensor) -> Tensor:
    dense = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
    return torch.view_as_real(dense).double() if dense.is_complex() else dense.double()


class _Draws:
    """Which modules draw random numbers: the innermost whose call moves a generator."""

    def __init__(self, module: nn.Module) -> None:
        self.names: list[str] = []
        self._stack: list[tuple[RandomState, int]] = []
        self._found = 0
        self._whole: RandomState | None = None
        self._hooks = []
        for name, part in module.named_modules():
            self._hooks.append(part.register_forward_pre_hook(self._enter))
            self._hooks.append(part.register_forward_hook(self._leaver(name), always_call=True))

    def begin(self) -> None:
        self._stack, self._found = [], 0

    def end(self) -> None:
        self._stack = []

    def _enter(self, *_: Any) -> None:
        self._stack.append((RandomState(), self._found))

    def _leaver(self, name: str) -> Any:
        def leave(*_: Any) -> None:
            before, found = self._stack.pop()
            if found == self._found and RandomState().differs(before):
                self._found += 1
                if name not in self.names:
                    self.names.append(name)

        return leave

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
