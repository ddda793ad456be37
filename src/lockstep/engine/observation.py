"""What a model does, seen in a few passes on a copy of it before any rank is started.

Names of modules tell little: a layer may draw, write to its weights, count its calls, skip a branch or share memory in
any way that Python allows. So a copy goes through a few rows of the first batches, and what changed is compared.
From this come the caveats of a run, the refusals of strategies, and the figures that each strategy is held against.
"""

import contextlib
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
from lockstep.strategies._module_state import (
    ModuleState,
    RandomState,
    evaluating,
    initialise_lazy,
    own_generators,
    tensors_of,
)
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
    """Loss and gradients of the whole model on the first rows of the first global batch."""

    rows: int
    loss: float
    gradients: dict[str, tuple[float, float]]  # by parameter: the sum of its elements, and of their squares
    elements: dict[str, int]
    weights: int  # a fingerprint of the initial state


def observe(module: nn.Module, batches: Batches, parameters: Parameters) -> tuple[Observed, Reference | None]:
    """Let a copy of the model, in its initial state, through some rows; it is changed by this.

    The reference is made in the modes of training, or where these draw, mix samples or write, in evaluation mode. It is
    None where that does one of these as well, or is not finite: then nothing can be held against it.
    """
    began = time.monotonic()
    passes = Passes()
    passes.choose(parameters.training.precision, None)
    passes.find_generators(module)
    initialise_lazy(module, batches.first(1).features)
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
        seeded = ModuleState(module, parameters=False)
        watch.begin()
        loss = _loss(module, batch, passes)
        loss.backward()  # type: ignore[no-untyped-call]
        watch.end(seeded.moved_generators(module))
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
    ranks = parameters.distributed.world_size
    rows = batches.whole(0)[0][: ROWS * ranks]
    seen.mixes_samples = not watch.names and _mixes(module, batches, rows, ranks, passes, initial)
    own = dict(module.named_parameters())
    seen.unused = [*unused]
    seen.buffers = [name for name in prints if name not in own]
    seen.written = [name for name in prints if name in own]
    # The same start, other rows: what differs then, each rank would write otherwise.
    seen.written_by_sample = [name for name in seen.written if len(prints[name]) > 1]
    seen.draws = watch.names
    seen.generators = [name for name, _ in own_generators(module)]
    seen.gradient_hooks = _hooked(module)
    watch.remove()
    # What draws or looks at other samples in training does other things there for each rank, as it should.
    seen.compared_in_training = not (seen.draws or seen.mixes_samples or seen.written)
    modes = contextlib.nullcontext() if seen.compared_in_training else evaluating(module)
    with modes:
        reference = _reference(module, batches, rows, ranks, passes, initial, seen)
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
def _mixes(
    module: nn.Module, batches: Batches, rows: Tensor, ranks: int, passes: Passes, initial: ModuleState
) -> bool:
    """Whether rows come out otherwise in the pieces that ranks and micro-batches may make of them."""
    together = _outputs(module, batches, [rows], passes, initial)
    for count in {ranks, min(PIECES, len(rows) // 2)} - {0, 1}:
        bounds = [len(rows) * number // count for number in range(count + 1)]
        pieces = [rows[first:stop] for first, stop in itertools.pairwise(bounds) if stop > first]
        apart = _outputs(module, batches, pieces, passes, initial)
        if not torch.allclose(apart, together, rtol=1e-2, atol=1e-4, equal_nan=True):
            return True
    return False


def _outputs(
    module: nn.Module, batches: Batches, pieces: list[Tensor], passes: Passes, initial: ModuleState
) -> Tensor:
    """The outputs for all rows, each piece in a pass of its own from the same state."""
    found = []
    for rows in pieces:
        with passes.autocast():
            found.append(module(batches.take(rows, None, len(rows)).features).float())
        initial.restore()
    return torch.cat(found)


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
    module: nn.Module,
    batches: Batches,
    rows: Tensor,
    ranks: int,
    passes: Passes,
    initial: ModuleState,
    seen: Observed,
) -> Reference | None:
    """In the modes that the model is in."""
    before, random = _prints(module), RandomState()
    loss = _loss(module, batches.take(rows, None, len(rows)), passes)
    loss.backward()  # type: ignore[no-untyped-call]
    seen.draws_in_evaluation = RandomState().differs(random) or bool(initial.moved_generators(module))
    now, own = _prints(module), dict(module.named_parameters())
    seen.written_in_evaluation = [name for name in own if before[name] != now[name]]
    initial.restore()
    gradients = {
        name: (float(each.sum()), float(each.abs().square().sum()))
        for name, parameter in own.items()
        if parameter.grad is not None
        for each in [_wide(parameter.grad)]
    }
    module.zero_grad(set_to_none=True)
    finite = math.isfinite(value := float(loss.detach())) and all(
        math.isfinite(squares) for _, squares in gradients.values()
    )
    if seen.draws_in_evaluation or seen.written_in_evaluation or not finite:
        return None
    if _mixes(module, batches, rows, ranks, passes, initial):
        return None
    elements = {name: parameter.numel() for name, parameter in own.items()}
    return Reference(len(rows), value, gradients, elements, combined(before))


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

    def end(self, generators: list[str]) -> None:
        """After a pass, with the model's own generators that it has drawn from."""
        self._stack = []
        self.names += [name for name in generators if name not in self.names]

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
