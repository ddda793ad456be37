"""Tensor parallelism: layers are cut across ranks, which compute their columns of each sample side by side.

The cuts are torch's (`parallelize_module`, DTensors on a mesh of ranks); which layers, the model says
(`_tensor_plan`). With ``data_parallel`` the ranks form a grid: rows of ranks that share the layers, columns that
share the samples, and in each column FSDP2 shares out what is left.
"""

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch._dynamo  # which sharding needs anyway: imported with this file, a fork server does it once for all ranks
import torch.distributed as dist
from pydantic import Field
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from lockstep.errors import RunFailed
from lockstep.strategies._dtensors import Parts, local, make_contiguous, restore, slices
from lockstep.strategies._fsdp_agreement import SUM, Agreement, install
from lockstep.strategies._fsdp_numbers import Numbers, numbers
from lockstep.strategies._fsdp_unused import (
    SameGradients,
    UnusedParameters,
    blocks_with_places,
    is_shard,
    skipped,
)
from lockstep.strategies._fsdp_wrap import separable
from lockstep.strategies._joining import broadcast_from_rank_0, join, mesh_of_ranks
from lockstep.strategies._some import Some
from lockstep.strategies._state import Slices, State, Stored
from lockstep.strategies._tensor_alike import Alike, divided_by
from lockstep.strategies._tensor_draws import Draws
from lockstep.strategies._tensor_plan import Way, check_sizes, held, plan_of, tie, tied
from lockstep.strategies._written import watch
from lockstep.strategies.base import Batch, Group, Outcome, Shard, Strategy, clock, open_transport
from lockstep.transports._sent import SentBytes

ADVICE = (
    "Allowed for such a model: distributed.strategy.data_parallel=1, or distributed.strategy=ddp or allreduce"
)


class Tensor(Strategy):
    """``data_parallel`` is among how many groups of ranks the samples are divided, 1 being none.

    Each group shares the layers; ranks of a group stand side by side. With more groups than one, the ranks that hold
    the same columns hold a share of them each, as ``fsdp`` does.
    """

    replicated = False
    sharded = True
    divides_parameters = True
    meets_in_passes = True

    def __init__(self, group: Group, *, data_parallel: Annotated[int, Field(ge=1, le=1024)] = 1) -> None:
        super().__init__(group)
        self.groups, self.size = data_parallel, _group_size(group.world_size, data_parallel)
        self.row, self.column = divmod(group.rank, self.size)
        self.counts = self.column == 0  # the ranks of a group see the same samples
        self.plan: dict[str, Way] = {}
        self._root: FSDPModule | None = None
        self._parts: Parts | None = None
        self._draws: Draws | None = None
        self._numbers = Numbers(self.module, group.world_size)
        self._alike = Alike(self.module, self.column, self.size)
        self._agreement: Agreement | None = None
        self._unused: UnusedParameters | None = None
        self._same_gradients = SameGradients(self.module, group.world_size)
        self._sent: SentBytes | None = None
        self._sent_before = 0

    @classmethod
    def share(
        cls,
        module: nn.Module,
        options: dict[str, Any],
        world_size: int,
        rank: int,  # noqa: ARG003 - all hold as much
    ) -> dict[str, int]:
        """A part of each layer that is cut, and a share of that among the groups."""
        size = _group_size(world_size, options["data_parallel"])
        shares = held(module, plan_of(module), size)
        return {name: -(-count // (world_size // size)) for name, count in shares.items()}

    def shard(self) -> Shard:
        """One slice of the global batch a group."""
        return Shard(self.row, self.row + 1, self.groups)

    @property
    def gradient_scale(self) -> float:
        """FSDP takes the mean over the groups."""
        return float(self.groups)

    def place(self, module: nn.Module) -> nn.Module:
        """Cut the layers, from rank 0's weights, and share out what is left among the groups."""
        self.plan = plan_of(module)
        check_sizes(module, self.plan, self.size)
        device = next(module.parameters()).device
        make_contiguous(module)
        self._join(device)
        broadcast_from_rank_0(module)
        ties = tied(module, self.plan)
        alone = separable(module, self.reads)[0]
        alone = {name: alone[name] for name in alone.keys() - skipped(alone, self.observed.unused)}
        mesh = mesh_of_ranks(device.type, (self.groups, self.size), ("data", "tensor"))
        for name, way in self.plan.items():
            if name:
                parallelize_module(module, mesh["tensor"], {name: _style(way)})
            else:
                _style(way)._apply(module, mesh["tensor"])
        tie(module, ties)
        may_draw = bool(self.observed.draws) or not self.observed.passes
        self._draws = Draws(module, self.plan, self.column, self.passes.generator, may_draw)
        if self.groups > 1:
            module = self._share_out(module, alone, mesh["data"])
        self.module = self.model = module
        self._parts = Parts(module)
        self._numbers = Numbers(module, self.group.world_size)
        self._alike = Alike(module, self.column, self.size)
        self._same_gradients = SameGradients(module, self.group.world_size)
        if device.type == "cpu":
            self._sent = SentBytes()
        return self.model

    def _join(self, device: torch.device) -> None:
        group = self.group
        join(group, device)
        # Sums of a few numbers, once a step: shared memory takes microseconds for what gloo takes half a millisecond.
        sums = replace(group, rendezvous=group.rendezvous.with_name(f"{group.rendezvous.name}-sums"))
        self.transport = open_transport(sums, "shm")

    def _share_out(self, module: nn.Module, alone: dict[str, nn.Module], mesh: DeviceMesh) -> nn.Module:
        """Block by block, as far as blocks share no parameter with what is outside of them."""
        apart = numbers(module)
        order = [name for name, _ in module.named_modules() if name in alone]  # the same on every rank
        wrapped = {name: fully_shard(alone[name], mesh=mesh, ignored_params=apart) for name in order}
        self._root = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=apart)
        wrapped[""] = self._root
        self._agreement = Agreement(self.group.rank, self.group.world_size, super().total, [*wrapped], ADVICE)
        install(self._agreement, [*wrapped.values()], DefaultReduceScatter())
        for _, block, places in blocks_with_places(wrapped):
            watch(
                block,
                places,
                lambda tensor: not is_shard(tensor),
                "the groups let go of the whole of it after a pass",
            )
        if self.observed.unused:
            self._unused = UnusedParameters(wrapped, self.total, module)
        return module

    def forward_backward(self, batch: Batch) -> Outcome:
        """Every rank of a group goes through the same samples, and draws alike but for its own columns."""
        self._sent_before = self._bytes()
        self.seed_draws("group", self.row)
        return self.accumulate(batch)

    def one_pass(self, batch: Batch) -> Outcome:
        """As ever."""
        assert self._draws is not None
        self._draws.begin()
        return super().one_pass(batch)

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """The groups hold their gradients until the last micro-batch."""
        return self._without_sync() if self._root is not None else contextlib.nullcontext()

    @contextlib.contextmanager
    def _without_sync(self) -> Iterator[None]:
        assert self._root is not None
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)

    def sync(self) -> float:
        """The norm of all ranks' parts together, each element counted once, whoever holds copies of it."""
        began = clock()
        held_here = [(p, p.grad) for p in self.module.parameters() if p.grad is not None and p.dim()]
        gradients = [local(gradient) for _, gradient in held_here]
        mine = [g for (p, _), g in zip(held_here, gradients, strict=True) if self._is_mine(p) and g.numel()]
        squares = float(nn.utils.get_total_norm(mine)) ** 2 if mine else 0.0
        # Every rank tells its gradient of a single number: those of a group are alike, and the mean is that of groups.
        columns = self._alike.squares()
        marks = self._same_gradients.numbers()
        told = self.total(
            torch.tensor([squares, *marks, *columns, *self._numbers.told()], dtype=torch.float64)
        )
        self._same_gradients.check(told[1:3], self.total, ADVICE)
        self._alike.check(told[3 : 3 + self.size], self.total)
        single = self._numbers.take(told[3 + self.size :])
        norm = math.sqrt(float(told[0]) + sum(float(gradient) ** 2 for gradient in single))
        gradients += single
        value = self.passes.loss_scale.undo(gradients, norm)
        if self.max_grad_norm is not None and value > self.max_grad_norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / value)
        self.sync_seconds = clock() - began
        self.wire_bytes = self._bytes() - self._sent_before
        return value

    def backward(self, loss: torch.Tensor) -> None:
        """Where parameters may stay unused, the groups agree first on who used which."""
        if self._unused is not None:
            self._unused.agree(loss)
        super().backward(loss)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """When all ranks have come as far."""
        if self._agreement is not None:
            self._agreement.reach(SUM, elements=values.numel())
        return super().total(values)

    def _is_mine(self, parameter: torch.Tensor) -> bool:
        """Whether this rank is the one, of those that hold the same elements, which counts and saves them."""
        divided = divided_by(parameter)
        return ("tensor" in divided or self.column == 0) and ("data" in divided or self.row == 0)

    def _bytes(self) -> int:
        """What NCCL sends on GPUs it tells nobody: there it is what this rank sends beside it."""
        assert self.transport is not None
        return self.transport.wire_bytes + (self._sent.read() if self._sent is not None else 0)

    @property
    def _own(self) -> Parts:
        assert self._parts is not None
        return self._parts

    def optimized(self) -> nn.Module:
        """This rank's parts, plain: fused kernels do not take cut and whole parameters together."""
        return Some(self._own.own)

    def apply(self) -> None:
        """The optimizer's step on this rank's parts."""
        self._own.lend()
        super().apply()
        self._own.clear()

    def fingerprinted(self) -> nn.Module:
        """Of what several ranks hold, the first one's."""
        return Some({name: p for name, p in self.module.named_parameters() if self._is_mine(p)})

    def state(self) -> State:
        """There is no rank that has it."""
        raise AssertionError("the state is in slices")

    def slices(self) -> Slices:
        """This rank's parts; of what several ranks hold, the first one's."""
        assert self.optimizer is not None
        state = self.module.state_dict()
        found = slices(self.module, self._own, self.optimizer, self.group.rank)
        copies = {name for name, tensor in state.items() if not self._is_mine(tensor)}
        return {
            "model": {name: one for name, one in found["model"].items() if name not in copies},
            "optimizer": {
                name: one for name, one in found["optimizer"].items() if name.rpartition("/")[0] not in copies
            },
        }

    def restore(self, stored: Stored) -> None:
        """Read this rank's parts."""
        assert self.optimizer is not None
        restore(self.module, self._own, self.optimizer, stored)

    def describe(self) -> dict[str, Any]:
        """The grid, what is cut, and how much of the model that is."""
        own = sum(parameter.numel() for parameter in self._own.own.values())
        whole = sum(parameter.numel() for parameter in self._own.names.values())
        return {
            "data_parallel": self.groups,
            "tensor_parallel": self.size,
            "plan": {name or "(root)": way.kind for name, way in self.plan.items()},
            "share_held": own / whole,
        }

    def close(self) -> None:
        """Drop the modules before the group, as with DDP."""
        self.model = self.module = nn.Identity()
        self._alike = Alike(self.module, self.column, self.size)
        self._root = self.optimizer = self._parts = self._draws = None
        gc.collect()
        if self._sent is not None:
            self._sent.close()
        super().close()
        dist.barrier()
        dist.destroy_process_group()


def _style(way: Way) -> ParallelStyle:
    if way.kind == "shared":
        return PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    return ColwiseParallel() if way.kind == "colwise" else RowwiseParallel()


def _group_size(ranks: int, groups: int) -> int:
    if ranks % groups:
        fitting = ", ".join(str(count) for count in range(1, ranks + 1) if ranks % count == 0)
        raise RunFailed(
            f"distributed.strategy.data_parallel: found {groups} for {ranks} ranks, allowed: {fitting}, which divide "
            "them equally"
        )
    return ranks // groups
