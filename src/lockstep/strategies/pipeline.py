"""Pipeline parallelism: each rank holds a stretch of the model's parts, and micro-batches go from rank to rank.

The schedules are data, and they are ours: see `collectives.pipeline` for what there is and where it comes from,
`collectives.pipeline_prove` for what is shown of each, `_pipeline_run` for how a rank carries its row out.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.collectives.pipeline import FIXED_STAGES, Schedule, classic_bubble, make, stages_of
from lockstep.errors import RunFailed
from lockstep.plugins import Plugin
from lockstep.strategies import _pipeline_state
from lockstep.strategies._blocks import IN_RUNS
from lockstep.strategies._module_state import evaluating, unchanged
from lockstep.strategies._pipeline_balance import measured_costs
from lockstep.strategies._pipeline_cut import Ownership, Unit, check_stages, cut, ownership, strip, units
from lockstep.strategies._pipeline_run import Boundary, Runner, boundaries, check_parts, sum_among
from lockstep.strategies._state import Slices, State, Stored
from lockstep.strategies.base import Batch, Group, Outcome, Shard, Strategy, clock, key, open_transport
from lockstep.transports.base import Label

MICRO_BATCHES = 8


class Pipeline(Strategy):
    """Every rank takes part in every sample; ``schedule`` says in which order.

    ``micro_batches`` is in how many pieces a global batch goes through, as equal as they can be (null: pieces of
    training.micro_batch_size, or 8). ``stages_per_rank`` is 1 for gpipe and 1f1b and 2 for zero_bubble_v; null is 2
    for interleaved, and 1 for zero_bubble. ``balance`` is what makes stages alike: the number of parameters, or
    the time that rank 0 needed for each part of the model. A sample is counted on the rank of the last stage.
    """

    replicated = False
    reduces_gradients = True  # of the weights that a rank holds, over all samples
    sharded = True
    draws_by_shard = True  # keyed by micro-batch and part of the model

    def __init__(
        self,
        group: Group,
        *,
        schedule: Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zero_bubble_v"] = "1f1b",
        micro_batches: Annotated[int, Field(ge=1, le=65536)] | None = None,
        stages_per_rank: Annotated[int, Field(ge=1, le=64)] | None = None,
        balance: Literal["parameters", "time"] = "parameters",
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm",
    ) -> None:
        super().__init__(group)
        self.schedule, self.micro_batches, self.balance = schedule, micro_batches, balance
        self.stages_per_rank = _stages_per_rank(schedule, stages_per_rank)
        self.transport = open_transport(group, transport)
        self._stages: list[list[Unit]] = []
        self._costs: list[float] = []
        self._held: list[int] = []  # the stages of this rank
        self._names: Ownership | None = None
        self._runner: Runner | None = None
        self._rows = 0  # of a global batch
        self._began = 0.0
        self._sent = 0

    @classmethod
    def share(cls, module: nn.Module, options: dict[str, Any], world_size: int, rank: int) -> dict[str, int]:
        """All of the parameters of the rank's stages, cut by their number; none of the others."""
        turns = _stages_per_rank(options["schedule"], options["stages_per_rank"])
        chain = units(module)
        check_stages(chain, world_size, turns)
        spans = cut([float(unit.parameters) for unit in chain], world_size * turns)
        own = [
            chain[at]
            for stage in stages_of(options["schedule"], rank, world_size, turns)
            for at in spans[stage]
        ]
        held = {id(parameter) for unit in own for part in unit.parts for parameter in part.parameters()}
        return {name: p.numel() if id(p) in held else 0 for name, p in module.named_parameters()}

    def shard(self) -> Shard:
        """All of the global batch: the first stage needs its features, the last its labels."""
        return Shard(0, 1, 1)

    def place(self, module: nn.Module) -> nn.Module:
        """Every rank begins with rank 0's weights, while it has all of them."""
        self.share_initial_weights(module)
        return super().place(module)

    def splits_batch(self) -> bool:
        """In micro-batches, unless there is one only."""
        return self._count(self._rows) > 1

    def settle(self, batch: Batch) -> None:
        """Cut the model, now that a batch shows what goes from part to part, and keep this rank's stages of it."""
        if getattr(self.module, "_compiled_call_impl", None) is not None:
            raise RunFailed(
                "training.compile: with pipeline the parts of the model are called one by one, and not the whole that "
                "would be compiled; allowed with it: false"
            )
        if self.micro_batches and self.passes.micro_batch_size:
            raise RunFailed(
                f"training.micro_batch_size: found {self.passes.micro_batch_size} beside {self.micro_batches} "
                "distributed.strategy.micro_batches, which say the same; allowed: one of the two, the other null"
            )
        whole, ranks = self.module, self.group.world_size
        chain = units(whole)
        check_stages(chain, ranks, self.stages_per_rank)
        self._rows = batch.global_samples
        self._costs = self._costs_of(chain, batch)
        spans = cut(self._costs, ranks * self.stages_per_rank)
        edges = self.inspect(whole, chain, spans, batch.features)
        self._stages = [chain[span.start : span.stop] for span in spans]
        self._costs = [sum(self._costs[span.start : span.stop]) for span in spans]
        self._names = ownership(whole, self._stages)
        self._held = stages_of(self.schedule, self.group.rank, ranks, self.stages_per_rank)
        own = {number: self._stages[number] for number in self._held}
        self.counts = len(self._stages) - 1 in own
        self._runner = Runner(
            self._open,
            own,
            edges,
            self._schedule_of,
            self.passes,
            self._seed,
            self.schedule.startswith("zero"),
            getattr(whole, IN_RUNS, False),
        )
        strip(whole, [unit for stage in own.values() for unit in stage], self._stages)
        self.module = self.model = _Kept(whole, self)

    def inspect(
        self, whole: nn.Module, chain: list[Unit], spans: list[range], features: Tensor
    ) -> list[Boundary]:
        """What goes from stage to stage; RunFailed where the parts are not the whole. No other rank takes part."""
        found = boundaries(whole, chain, spans, features, self.passes)
        check_parts(whole, chain, features, self.passes)
        return found

    @property
    def _open(self) -> Any:
        assert self.transport is not None
        return self.transport

    @property
    def _ownership(self) -> Ownership:
        assert self._names is not None, "the model is cut in settle()"
        return self._names

    def _costs_of(self, chain: Sequence[Unit], batch: Batch) -> list[float]:
        """What each unit costs: the same numbers on every rank."""
        if self.balance == "parameters":
            return [float(unit.parameters) for unit in chain]
        costs = torch.zeros(len(chain), dtype=torch.float64)
        if self.group.rank == 0:
            rows = -(-self._rows // self._count(self._rows))
            with unchanged(self.module), evaluating(self.module):
                seconds = measured_costs(chain, batch.features[:rows], self.passes)
            costs += torch.tensor(seconds, dtype=torch.float64)
        return [float(cost) for cost in self.total(costs)]

    def _count(self, rows: int) -> int:
        """In how many micro-batches so many rows go through, one row each at least."""
        if self.passes.micro_batch_size:
            return -(-rows // self.passes.micro_batch_size)
        return min(self.micro_batches or MICRO_BATCHES, rows)

    def _schedule_of(self, micro_batches: int) -> Schedule:
        return make(self.schedule, self.group.world_size, micro_batches, self.stages_per_rank)

    def _seed(self, micro_batch: int, name: str) -> None:
        self.passes.seed(key(*self.draws, "micro-batch", micro_batch, name))

    def forward_backward(self, batch: Batch) -> Outcome:
        """This rank's row of the schedule. Gradients of weights that other ranks hold as well are summed."""
        assert self._runner is not None
        self._began, self._sent = clock(), self._open.wire_bytes
        count = self._count(len(batch.labels))
        outcome = self._runner.train(batch, self.draws[1] + 1, count, self.passes.loss_scale.value)
        for number, (parameter, stages) in enumerate(self._ownership.holders.items()):
            ranks = list(dict.fromkeys(self._rank_of(stage) for stage in stages))
            if len(ranks) > 1 and self.group.rank in ranks:
                self._open.label = Label("pipeline shared gradient", number, self.draws[1] + 1)
                sum_among(ranks, self._open, parameter)
        return outcome

    def _rank_of(self, stage: int) -> int:
        return self._schedule_of(1).placement[stage]

    def sync(self) -> float:
        """The norm over all stages. Waiting for the slowest belongs to the pipeline's bubble."""
        assert self._runner is not None
        trained = [(p, p.grad) for _, p in self._named_parameters() if p.grad is not None]
        squares = torch.zeros(1, dtype=torch.float64)
        if owned := [
            gradient for parameter, gradient in trained if self._ownership.saved_by(parameter, self._held)
        ]:
            squares += float(nn.utils.get_total_norm(owned)) ** 2
        norm = math.sqrt(float(self.total(squares)))
        seconds, busy = clock() - self._began, self._runner.busy_seconds
        self.sync_seconds = seconds - busy
        self.measured = {"bubble": self.sync_seconds / seconds}
        self.wire_bytes = self._open.wire_bytes - self._sent
        gradients = [gradient for _, gradient in trained]
        value = self.passes.loss_scale.undo(gradients, norm)
        if self.max_grad_norm is not None and value > self.max_grad_norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / value)
        return value

    def share_buffers(self) -> None:
        """Each stands on one rank alone."""

    def total(self, values: Tensor) -> Tensor:
        """As ever; what was sent before it says other things on every rank."""
        self._open.label = Label("all_reduce", 0, self.draws[1] + 1)
        return super().total(values)

    def predict(self, features: Tensor) -> Tensor | None:
        """The logits of some rows, on the rank of the last stage."""
        assert self._runner is not None
        return self._runner.predict(features, self.draws[1] + 1, self._count(len(features)))

    def state(self) -> State:
        """There is no rank that has it."""
        raise AssertionError("the state is in slices")

    def slices(self) -> Slices:
        """The tensors of this rank's stages; what stages share is saved by the first of them."""
        assert self.optimizer is not None
        return _pipeline_state.slices(self.module, self.optimizer, self._ownership, self._held)

    def restore(self, stored: Stored) -> None:
        """Read the tensors of this rank's stages."""
        assert self.optimizer is not None
        _pipeline_state.restore(self.module, self.optimizer, self._ownership, stored)

    def describe(self) -> dict[str, Any]:
        """The stages, what the schedule costs on paper, and the classic bubble that it is compared with."""
        count = self._count(self._rows)
        schedule = self._schedule_of(count)
        total = sum(self._costs) or 1.0
        return {
            "schedule": self.schedule,
            "micro_batches": count,
            "stages": [
                {
                    "rank": schedule.placement[number],
                    "parts": [name for unit in stage for name in unit.names],
                    "parameters": sum(unit.parameters for unit in stage),
                    "cost_share": cost / total,
                }
                for number, (stage, cost) in enumerate(zip(self._stages, self._costs, strict=True))
            ],
            "activations_kept": [schedule.kept(rank) for rank in range(schedule.ranks)],
            "bubble": {
                "classic": classic_bubble(schedule.ranks, count),
                "of_schedule": schedule.idle_share,
            },
            "shared": [
                self._ownership.canonical[parameter]
                for parameter, stages in self._ownership.holders.items()
                if len(stages) > 1
            ],
        }


class _Kept(nn.Module):
    """What a rank keeps of the user's module, under the names of the whole. Called, it is the whole, over all ranks."""

    def __init__(self, stripped: nn.Module, pipeline: Pipeline) -> None:
        super().__init__()
        for name, child in stripped._modules.items():  # named_children() leaves out further names of a part
            self.add_module(name, child)
        self._predict = pipeline.predict
        self._canonical = pipeline._ownership.canonical

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """By the first name of each in the whole: also where this rank has a shared one under another."""
        for name, parameter in super().named_parameters(*arguments, **options):
            yield self._canonical.get(parameter, name), parameter

    def forward(self, features: Tensor) -> Tensor:
        """(rows, ...) to logits on the rank of the last stage, and to nothing on the others."""
        logits = self._predict(features)
        return features.new_empty(0) if logits is None else logits


def _stages_per_rank(schedule: str, wanted: int | None) -> int:
    fixed = FIXED_STAGES.get(schedule)
    if fixed is not None and wanted not in (None, fixed):
        raise RunFailed(
            f"distributed.strategy.stages_per_rank: found {wanted} with schedule {schedule}, allowed: {fixed}; for "
            "more, schedule: interleaved or zero_bubble"
        )
    return wanted or fixed or (2 if schedule == "interleaved" else 1)
