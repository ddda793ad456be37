"""Before step 1: does the strategy compute what the whole model computes?

A few rows of the first batch go through the strategy's forward pass, backward pass and reduction, in the modes of
training; in evaluation mode where a training pass draws, writes or mixes samples. Their loss and every gradient are
held against those of the whole model in one process, which `observation` has left. So a plan of layers that is wrong, a
hook that is not called or a part that is left out shows before anything is trained.
"""

import contextlib
import math
from dataclasses import asdict
from typing import Any

import torch

from lockstep.catalog.run import Run
from lockstep.engine.batches import Batches
from lockstep.engine.metrics import combined, fingerprint, own_part
from lockstep.engine.observation import Reference
from lockstep.errors import RunFailed
from lockstep.files import read_json, write_json
from lockstep.strategies._module_state import ModuleState, evaluating, tensors_of
from lockstep.strategies._passes import LossScale
from lockstep.strategies.base import Strategy

FILE = "reference.json"  # in the live folder
# Shares by which a gradient may differ: far above the rounding of a deep model, far below what a wrong cut makes.
TOLERANCES = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
FLOOR = 0.01  # of a tolerance: gradients as small as this beside all others are nothing but rounding


def keep(run: Run, reference: Reference | None) -> None:
    """Leave the reference for the ranks."""
    if reference is not None:
        run.live.mkdir(exist_ok=True)
        write_json(run.live / FILE, asdict(reference))


def weights_print(module: torch.nn.Module) -> int:
    """One number for the initial state of a model."""
    return combined({name: fingerprint(tensor) for name, tensor in tensors_of(module).items()})


def reference_of(run: Run) -> Reference | None:
    """What was left for this attempt, if anything."""
    try:
        found: dict[str, Any] = read_json(run.live / FILE)
        return Reference(**found)
    except (OSError, ValueError, TypeError):
        return None


def rehearse(
    strategy: Strategy,
    batches: Batches,
    reference: Reference | None,
    initial: int,
    names: list[str],
    precision: str,
) -> dict[str, Any]:
    """RunFailed on every rank where the strategy's loss or gradients are not the model's. Leaves no trace.

    Every rank calls it. ``initial`` is the fingerprint of this rank's weights as its model was made, and ``names`` are
    those of all parameters. Where rank 0's weights are not the ones of the reference, nothing is compared. Returns what
    was compared, or why nothing was.
    """
    if reference is None:
        return {
            "absent": "in evaluation mode the model draws, is not finite or mixes samples; or it was not looked at"
        }
    if not strategy.exact or not strategy.updates_weights:
        return {"absent": "this strategy is not exact, or its servers apply each gradient at once"}
    if not strategy.sharded and strategy.group.world_size == 1:
        return {"absent": "a single process is the model itself"}
    same = torch.tensor([float(strategy.group.rank == 0 and reference.weights == initial)])
    if not float(strategy.total(same)):
        return {"absent": "the model's function makes other weights in each process"}
    loss, found = _through(strategy, batches, reference.rows)
    table = torch.tensor([found.get(name, (0.0, 0.0, 0.0)) for name in names], dtype=torch.float64)
    table = strategy.total(torch.cat([table.view(-1), torch.tensor([loss], dtype=torch.float64)]))
    loss, table = float(table[-1]) / reference.rows, table[:-1].view(-1, 3)
    # What several ranks hold is counted by each of them: the shares of a parameter add up to how often.
    table = table[:, :2] / table[:, 2:].clamp(min=1e-300)
    divided = strategy.divides_parameters or not strategy.replicated
    complaint = _difference(
        reference, loss, dict(zip(names, table.tolist(), strict=True)), precision, divided
    )
    if complaint:
        raise RunFailed(complaint)
    return {"absent": None, "rows": reference.rows, "gradients": len(reference.gradients)}


def _through(
    strategy: Strategy, batches: Batches, rows: int
) -> tuple[float, dict[str, tuple[float, float, float]]]:
    """The summed loss of this rank's rows; of its part of each gradient the sum, that of squares, and its share."""
    state = ModuleState(strategy.module, parameters=False)
    clip, scale, draws = strategy.max_grad_norm, strategy.passes.loss_scale, strategy.draws
    strategy.max_grad_norm, strategy.draws = None, (draws[0], -1)
    strategy.passes.loss_scale = (
        LossScale()
    )  # off: gradients of fp16 that overflow say nothing of the strategy
    try:
        with (
            contextlib.nullcontext()
            if strategy.observed.compared_in_training
            else evaluating(strategy.module)
        ):
            batch = batches.first(rows)
            outcome = strategy.forward_backward(batch)
            strategy.sync()
        found = {
            name: _measured(parameter)
            for name, parameter in strategy.module.named_parameters()
            if parameter.grad is not None
        }
        return (outcome.loss * batch.samples if strategy.counts else 0.0), found
    finally:
        strategy.max_grad_norm, strategy.draws, strategy.passes.loss_scale = clip, draws, scale
        for parameter in strategy.module.parameters():
            parameter.grad = None
        state.restore()


def _measured(parameter: torch.nn.Parameter) -> tuple[float, float, float]:
    assert parameter.grad is not None
    own = own_part(parameter.grad).detach()
    wide = (torch.view_as_real(own) if own.is_complex() else own).double()
    return float(wide.sum()), float(wide.square().sum()), own.numel() / max(parameter.numel(), 1)


def _difference(
    reference: Reference, loss: float, found: dict[str, list[float]], precision: str, divided: bool
) -> str:
    """What is wrong, in words; nothing where all agrees."""
    tolerance = TOLERANCES[precision]
    whole = math.sqrt(sum(squares for _, squares in reference.gradients.values()))
    told = f"checked on {reference.rows} samples before training, "
    advice = (
        "what the model does is lost where it is cut or shared out. Nothing was trained. Allowed: a strategy that "
        "keeps the model whole, such as distributed.strategy=ddp or allreduce"
        if divided
        else "what the model does is another thing for the parts of a batch than for the whole (a hook that clamps "
        "a gradient, for example). Nothing was trained. Allowed: distributed.strategy=single with "
        "distributed.world_size=1"
    )
    if not math.isfinite(loss) or abs(loss - reference.loss) > tolerance * max(abs(reference.loss), 1e-6):
        return f"{told}the loss is {loss:.6g} where the model's own is {reference.loss:.6g}: {advice}"
    worst, most = "", 0.0
    for name, (total, squares) in found.items():
        expected, expected_squares = reference.gradients.get(name, (0.0, 0.0))
        size = max(math.sqrt(squares), math.sqrt(expected_squares))
        spread = math.sqrt(max(reference.elements.get(name, 1), 1))
        off = max(abs(math.sqrt(squares) - math.sqrt(expected_squares)), abs(total - expected) / spread)
        if off > tolerance * (size + FLOOR * whole) and off / size > most:
            worst, most = name, off / size
    if not worst:
        return ""
    return f"{told}the gradient of {worst} differs by {most:.2%} of its norm from the model's own: {advice}"
