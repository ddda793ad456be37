"""Carries out a pipeline schedule: the rows that are proven and drawn, on tensors, over any transport.

A rank does the actions of its row one after another. What it needs from another rank it receives when it needs it,
what another rank needs it sends at once (`_pipeline_mail`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.collectives.pipeline import Schedule
from lockstep.errors import RunFailed
from lockstep.strategies._blocks import runs
from lockstep.strategies._loss import correct, summed_loss
from lockstep.strategies._module_state import RandomState, evaluating, tensors_of, unchanged
from lockstep.strategies._passes import Passes
from lockstep.strategies._pipeline_backward import Backward, Pass
from lockstep.strategies._pipeline_cut import Unit
from lockstep.strategies._pipeline_mail import Mail
from lockstep.strategies.base import Batch, Outcome, Shard, clock
from lockstep.transports.base import Transport


@dataclass(frozen=True)
class Boundary:
    """What a stage takes: the shape of one row, and the type."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_NOTHING = torch.empty(0)
ROWS_COMPARED = 8


class Runner:
    """One rank's part. ``boundaries`` has what each stage takes; ``seed`` is called before each unit's pass.

    ``again``: runs of a stage's units keep their input only, and are computed again in the backward pass.
    """

    def __init__(
        self,
        transport: Transport,
        stages: Mapping[int, Sequence[Unit]],
        boundaries: Sequence[Boundary],
        schedule_for: Callable[[int], Schedule],
        passes: Passes,
        seed: Callable[[int, str], None],
        split: bool,
        again: bool,
    ) -> None:
        self.transport, self.stages, self.boundaries = transport, stages, boundaries
        self.schedule_for, self.passes, self.seed = schedule_for, passes, seed
        self.last = len(boundaries) - 1
        self.again = again
        self.backward = {
            number: Backward([part for unit in stage for part in unit.parts], split)
            for number, stage in stages.items()
        }
        self.busy_seconds = 0.0  # of the last step: computing, not waiting

    def train(self, batch: Batch, step: int, micro_batches: int, scale: float) -> Outcome:
        """Add this batch's gradients to the weights of this rank; the outcome on the rank of the last stage."""
        rows = len(batch.labels)
        count = min(micro_batches, rows)
        pieces = [Shard(number, number + 1, count).rows(rows) for number in range(count)]
        schedule = self.schedule_for(count)
        mail = Mail(schedule, self.transport, step, self._room(pieces), batch.features.device)
        made: dict[tuple[int, int], Pass] = {}
        seen = Outcome(0.0, 0.0)
        self.busy_seconds = 0.0
        for action in schedule.rows[self.transport.rank]:
            place, piece = (action.stage, action.micro_batch), pieces[action.micro_batch]
            backward = self.backward[action.stage]
            if action.kind == "F":
                given = (
                    batch.features[piece]
                    if action.stage == 0
                    else mail.take(("F", action.stage - 1, place[1]))
                )
                began = clock()
                made[place], output = self._forward(*place, given, batch, piece, scale, seen)
                self.busy_seconds += self._since(began)
                mail.send(("F", *place), output)
                continue
            if action.kind == "W":
                began = clock()
                backward.of_weights(made.pop(place))
                self.busy_seconds += self._since(began)
                continue
            gradient = None if action.stage == self.last else mail.take(("I", action.stage + 1, place[1]))
            began = clock()
            (backward.whole if action.kind == "B" else backward.of_input)(made[place], gradient)
            self.busy_seconds += self._since(began)
            if action.stage > 0:
                mail.send(("I", *place), made[place].input_gradient)
            made[place].given = made[place].result = _NOTHING
            if action.kind == "B":
                del made[place]
        mail.finish()
        return Outcome(seen.loss / batch.samples if batch.samples else 0.0, seen.correct)

    def _since(self, began: float) -> float:
        """Seconds until the device has done what it was asked for: the next message waits for that anyway."""
        self.passes.finish()
        return clock() - began

    def _forward(
        self, stage: int, number: int, given: Tensor, batch: Batch, piece: slice, scale: float, seen: Outcome
    ) -> tuple[Pass, Tensor]:
        """Through one stage; adds to ``seen`` in the last."""
        backward = self.backward[stage]
        if stage > 0 and given.is_floating_point():
            given.requires_grad_()
        backward.begin()
        # A copy, because a part may change what it is given in place, and autograd forbids that of a leaf.
        output = self._through(stage, number, given.clone() if given.requires_grad else given)
        if stage < self.last:
            return backward.end(given, output), output.detach()
        logits, labels = self.passes.full_precision(output), batch.labels[piece]
        total = summed_loss(logits, labels)
        seen.loss += float(total.detach()) * batch.weight
        with torch.no_grad():
            seen.correct += correct(logits, labels) * batch.weight
        return backward.end(given, total * (scale * batch.weight / batch.global_samples)), output.detach()

    def _through(self, stage: int, number: int, value: Tensor) -> Tensor:
        units = self.stages[stage]
        with self.passes.autocast():
            if not (self.again and torch.is_grad_enabled()):
                return self._units(units, number, value)
            for run in runs(len(units)):
                part = units[run.start : run.stop]
                value = checkpoint(self._units, part, number, value, use_reentrant=False)
        return value

    def _units(self, units: Sequence[Unit], number: int, value: Tensor) -> Tensor:
        for unit in units:
            self.seed(number, unit.label)
            value = unit(value)
        return value

    def predict(self, features: Tensor, step: int, micro_batches: int) -> Tensor | None:
        """The logits of some rows, on the rank of the last stage; every rank calls it with as many."""
        rows = len(features)
        count = min(micro_batches, rows)
        pieces = [Shard(number, number + 1, count).rows(rows) for number in range(count)]
        schedule = forward_only(self.schedule_for(count))
        mail = Mail(schedule, self.transport, step, self._room(pieces), features.device)
        logits: dict[int, Tensor] = {}
        for action in schedule.rows[self.transport.rank]:
            stage, number = action.stage, action.micro_batch
            given = features[pieces[number]] if stage == 0 else mail.take(("F", stage - 1, number))
            output = self._through(stage, number, given)
            if stage == self.last:
                logits[number] = output
            mail.send(("F", stage, number), output)
        mail.finish()
        return torch.cat([logits[number] for number in range(count)]) if logits else None

    def _room(self, pieces: Sequence[slice]) -> Callable[[str, int, int], Tensor]:
        """Makes the tensor that a message is received into."""

        def room(kind: str, stage: int, number: int) -> Tensor:
            boundary = self.boundaries[stage + 1 if kind == "F" else stage]
            piece = pieces[number]
            return torch.empty(piece.stop - piece.start, *boundary.shape, dtype=boundary.dtype)

        return room


def forward_only(schedule: Schedule) -> Schedule:
    """The forward passes of a schedule, in the order of its rows."""
    rows = tuple(tuple(action for action in row if action.kind == "F") for row in schedule.rows)
    return Schedule(schedule.name, schedule.micro_batches, schedule.placement, rows)


def boundaries(
    whole: nn.Module, chain: Sequence[Unit], spans: Sequence[range], features: Tensor, passes: Passes
) -> list[Boundary]:
    """What each stage takes, seen on two rows. RunFailed where that is no tensor with a row a sample."""
    found = []
    value = features[:2].clone()  # which a part may change in place
    rows = len(value)
    with unchanged(whole), evaluating(whole), torch.no_grad(), passes.autocast():
        for span in spans:
            found.append(Boundary(tuple(value.shape[1:]), value.dtype))
            for unit in chain[span.start : span.stop]:
                value = unit(value)
                if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != rows:
                    what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise RunFailed(
                        f"pipeline: {unit.names[-1]} returned {what} for {rows} samples; what goes from one part to "
                        "the next must be one tensor with a row for every sample"
                    )
    return found


def check_parts(whole: nn.Module, chain: Sequence[Unit], features: Tensor, passes: Passes) -> None:
    """RunFailed where the parts one after another are another function than the whole model, as it is trained.

    Both go through some rows in the modes that training finds, with the same draws.
    """
    value = features[:ROWS_COMPARED]

    def parts(result: Tensor) -> Tensor:
        for unit in chain:
            result = unit(result)
        return result

    seen = []
    for function in (whole, parts):
        with unchanged(whole), torch.no_grad(), passes.autocast():
            passes.seed(0)
            output, written = (
                function(value.clone()),
                {name: each.clone() for name, each in tensors_of(whole).items()},
            )
            seen.append((output, RandomState(), written))
    (expected, _, wanted), (output, drawn, written) = seen
    what = ""
    if not isinstance(expected, Tensor) or not _alike(output, expected):
        what = "do not give what the model itself gives"
    elif changed := [name for name in wanted if not _alike(written[name], wanted[name])]:
        what = f"do not change {changed[0]} as the model itself does"
    elif drawn.differs(seen[0][1]):
        what = "do not draw the random numbers that the model itself draws"
    if what:
        raise RunFailed(
            f"pipeline: the parts of {type(whole).__name__} one after another {what}, so its forward pass does more "
            "than call them; allowed: parts of which each takes what the one before it returned, and nothing beside "
            "them"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, equal_nan=True))


def sum_among(ranks: Sequence[int], transport: Transport, parameter: Tensor) -> None:
    """Sum a parameter's gradient over some ranks, in their order, so that all get the same bits."""
    own = (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).cpu().contiguous()
    others = [rank for rank in ranks if rank != transport.rank]
    sends = [transport.send(own, rank) for rank in others]
    parts = {rank: torch.empty_like(own) for rank in others}
    for rank, part in parts.items():
        transport.recv(part, rank).wait()
    for send in sends:
        send.wait()
    parts[transport.rank] = own
    total = parts[ranks[0]].clone()
    for rank in ranks[1:]:
        total += parts[rank]
    # Laid out in memory as the parameter: fused optimizers go through both side by side.
    parameter.grad = torch.empty_like(parameter).copy_(total)
