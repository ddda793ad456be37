"""torch's fully sharded data parallelism (FSDP2): each rank holds a share of every parameter, gradient and moment.

A block's parameters are gathered just before it is used and let go of afterwards, its gradients are reduced to the
shares (Rajbhandari et al., "ZeRO", SC 2020; Zhao et al., "PyTorch FSDP", VLDB 2023).
"""

import contextlib
import gc
import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch._dynamo  # which sharding needs anyway: imported with this file, a fork server does it once for all ranks
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter

from lockstep.errors import RunFailed
from lockstep.plugins import Plugin
from lockstep.strategies._dtensors import Parts, local, make_contiguous, restore, slices
from lockstep.strategies._fsdp_agreement import SUM, Agreement, install
from lockstep.strategies._fsdp_numbers import Numbers, numbers
from lockstep.strategies._fsdp_ring import RingReduceScatter, neighbours_of
from lockstep.strategies._fsdp_unused import (
    SameGradients,
    UnusedParameters,
    blocks_with_places,
    is_shard,
    skipped,
)
from lockstep.strategies._fsdp_wrap import (
    gathered_bytes,
    group_size,
    least_bytes,
    mesh_of,
    own_bytes,
    policy,
    rows,
    separable,
    whole_gradient_bytes,
)
from lockstep.strategies._joining import broadcast_from_rank_0, for_sums, join
from lockstep.strategies._some import Some
from lockstep.strategies._state import Slices, State, Stored
from lockstep.strategies._written import watch
from lockstep.strategies.base import Batch, Group, Outcome, Strategy, clock
from lockstep.transports._sent import SentBytes
from lockstep.transports.base import Transport

ADVICE = (
    "Allowed for such a model: distributed.strategy=ddp or allreduce; or name these blocks in "
    "distributed.strategy.gathered_with_root, which then all ranks gather in every pass"
)
_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Fsdp(Strategy):
    """Wrapped block by block; what no block holds, and what two of them share, is gathered with the root.

    A parameter that is a single number is not shared out: every rank holds it.

    ``full_shard`` gathers a block's parameters again for its backward pass, ``shard_grad_op`` keeps them from its
    forward pass on: fewer bytes, more memory. ``hybrid`` shards fully over groups of ``ranks_per_group`` ranks that
    stand side by side, and holds a replica in each. ``reduce_scatter: ring`` is ours over ``transport``, for half of
    gloo's bytes; ``backend`` is gloo's or NCCL's own. ``param_dtype`` is what a block computes in and is gathered
    in, ``reduce_dtype`` what gradients are summed in (null: as the parameters); shares and moments stay in full
    precision. ``cpu_offload`` keeps the shares in the host's memory. ``gathered_with_root`` names blocks that some
    ranks may leave out of a pass; those seen to be left out before training are found without it.
    """

    replicated = False
    sharded = True
    divides_parameters = True
    meets_in_passes = True

    def __init__(
        self,
        group: Group,
        *,
        sharding: Literal["full_shard", "shard_grad_op", "hybrid"] = "full_shard",
        ranks_per_group: Annotated[int, Field(ge=1)] | None = None,
        reduce_scatter: Literal["ring", "backend"] = "ring",
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "gloo",
        param_dtype: Literal["bf16", "fp16"] | None = None,
        reduce_dtype: Literal["fp32", "bf16", "fp16"] | None = None,
        cpu_offload: bool = False,
        gathered_with_root: tuple[str, ...] = (),
    ) -> None:
        super().__init__(group)
        self.sharding, self.cpu_offload = sharding, cpu_offload
        self.ranks_per_group = group_size(group.world_size, sharding, ranks_per_group)
        self.param_dtype, self.reduce_dtype = _DTYPES[param_dtype], _DTYPES[reduce_dtype]
        self.exact = param_dtype is None and reduce_dtype is None
        self.wrapped: dict[str, FSDPModule] = {}  # by name, in the order of the blocks; the root has no name
        self.left_to_root: dict[str, str] = {}  # blocks that could not be wrapped, and why
        self._gathered_with_root = gathered_with_root
        self._agreement: Agreement | None = None
        self._unused: UnusedParameters | None = None
        self._same_gradients = SameGradients(self.module, group.world_size)
        self._parts: Parts | None = None
        self._numbers = Numbers(self.module, group.world_size)
        self._ring_wanted = reduce_scatter == "ring"
        self._ring_transport = transport
        self._ring: RingReduceScatter | None = None
        self._least_bytes = 0
        self._sent: SentBytes | None = None
        self._beside_sockets: Transport | None = None  # which the kernel does not count
        self._sent_before = 0

    @classmethod
    def share(cls, module: nn.Module, options: dict[str, Any], world_size: int, rank: int) -> dict[str, int]:
        """Equal rows of each parameter; the last ranks have fewer, or none."""
        size = group_size(world_size, options["sharding"], options["ranks_per_group"])
        return {name: rows(p, size, rank % size) for name, p in module.named_parameters()}

    @classmethod
    def gathered(cls, module: nn.Module, options: dict[str, Any], world_size: int, in_pieces: bool) -> int:
        """The weights that it goes through, and the gradients that are not yet reduced."""
        size = group_size(world_size, options["sharding"], options["ranks_per_group"])
        again = options["sharding"] != "shard_grad_op"
        weights = gathered_bytes(module, again, size, _DTYPES[options["param_dtype"]])
        return weights + whole_gradient_bytes(module, in_pieces, _DTYPES[options["reduce_dtype"]])

    @property
    def gradient_scale(self) -> float:
        """FSDP takes the mean over the ranks."""
        return float(self.group.world_size)

    def place(self, module: nn.Module) -> nn.Module:
        """Join the ranks, take rank 0's weights, and keep this rank's share of them."""
        device = next(module.parameters()).device
        make_contiguous(module)
        join(self.group, device)
        self.transport = for_sums(self.group)
        if self.param_dtype is torch.float16:
            self.passes.loss_scale.switch_on()
        broadcast_from_rank_0(module)
        self.module = self.model = self._wrap(module, device)
        self._parts = Parts(self.module)
        self._numbers = Numbers(self.module, self.group.world_size)
        self._same_gradients = SameGradients(self.module, self.group.world_size)
        for _, block, places in blocks_with_places(self.wrapped):
            watch(
                block,
                places,
                lambda tensor: not is_shard(tensor),
                "fsdp lets go of the whole of it after a pass",
            )
        if self.observed.unused or self._gathered_with_root:
            self._unused = UnusedParameters(self.wrapped, self.total, self.module)
        sizes = [own_bytes(each, self.param_dtype) for each in self.wrapped.values()]
        again = self.sharding != "shard_grad_op"
        self._least_bytes = least_bytes(sizes, again, self.group.world_size, self.ranks_per_group)
        if device.type == "cpu":
            self._sent = SentBytes()
        return self.model

    def _wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        again = self.sharding != "shard_grad_op"
        wrapped = partial(
            fully_shard,
            mesh=mesh_of(device.type, self.group.world_size, self.ranks_per_group, self.sharding),
            mp_policy=policy(module, self.param_dtype, self.reduce_dtype),
            offload_policy=CPUOffloadPolicy(pin_memory=device.type != "cpu")
            if self.cpu_offload
            else OffloadPolicy(),
            ignored_params=numbers(module),
        )
        chosen, self.left_to_root = separable(module, self.reads)
        may_be_skipped = self._may_be_skipped(chosen)
        self.left_to_root |= dict.fromkeys(may_be_skipped, "a rank may leave it out of a pass")
        chosen = {name: block for name, block in chosen.items() if name not in may_be_skipped}
        for name, block in chosen.items():
            self.wrapped[name] = wrapped(block, reshard_after_forward=again)
        # The root's own parameters are needed again at once, when backward begins: they stay.
        self.wrapped[""] = wrapped(module, reshard_after_forward=False)
        reduce_scatter: ReduceScatter = DefaultReduceScatter()
        if self._ring_wanted and device.type == "cpu" and self.ranks_per_group > 1:
            neighbours = neighbours_of(self.group, self.ranks_per_group, self._ring_transport)
            self._beside_sockets = neighbours.beside_sockets
            reduce_scatter = self._ring = RingReduceScatter(neighbours)
        if self.transport is not None:
            ranks = self.group.world_size
            self._agreement = Agreement(self.group.rank, ranks, super().total, [*self.wrapped], ADVICE)
            install(self._agreement, [*self.wrapped.values()], reduce_scatter)
        return module

    def _may_be_skipped(self, blocks: dict[str, nn.Module]) -> set[str]:
        if unknown := set(self._gathered_with_root) - blocks.keys():
            raise RunFailed(
                f"distributed.strategy.gathered_with_root: found {min(unknown)}, which is no block of this model; "
                f"allowed: {', '.join(blocks) or 'none, since it has no blocks'}"
            )
        return skipped(blocks, self.observed.unused) | set(self._gathered_with_root)

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """Gradients are not reduced in this backward pass: each rank holds them whole until the last."""
        return self._without_sync()

    @contextlib.contextmanager
    def _without_sync(self) -> Iterator[None]:
        self.wrapped[""].set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.wrapped[""].set_requires_gradient_sync(True)

    def forward_backward(self, batch: Batch) -> Outcome:
        """As ever; what is sent for it is counted from here on."""
        self._sent_before = self._bytes()
        if self._ring is not None:
            self._ring.begin(self.draws[1] + 1)
        return super().forward_backward(batch)

    def sync(self) -> float:
        """The norm of what the ranks hold together; their shares are clipped alike."""
        began = clock()
        own = [local(p.grad) for p in self.module.parameters() if p.grad is not None and p.dim()]
        squares = 0.0
        if full := [share for share in own if share.numel()]:
            squares = float(nn.utils.get_total_norm(full)) ** 2 / (
                self.group.world_size / self.ranks_per_group
            )
        marks = self._same_gradients.numbers()
        told = self.total(torch.tensor([squares, *marks, *self._numbers.told()], dtype=torch.float64))
        self._same_gradients.check(told[1:3], self.total, ADVICE)
        single = self._numbers.take(told[3:])
        norm = math.sqrt(float(told[0]) + sum(float(gradient) ** 2 for gradient in single))
        own += single
        value = self.passes.loss_scale.undo(own, norm)
        if self.max_grad_norm is not None and value > self.max_grad_norm:
            torch._foreach_mul_(own, self.max_grad_norm / value)
        self.sync_seconds = clock() - began
        # NCCL tells nobody what it sends: there it is the least that can do.
        self.wire_bytes = self._bytes() - self._sent_before if self._sent is not None else self._least_bytes
        return value

    def optimized(self) -> nn.Module:
        """This rank's shares."""
        return Some(self._own.own)

    @property
    def _own(self) -> Parts:
        assert self._parts is not None
        return self._parts

    def apply(self) -> None:
        """The optimizer's step on the shares."""
        self._own.lend()
        super().apply()
        self._own.clear()

    def _bytes(self) -> int:
        beside = [each.wire_bytes for each in (self.transport, self._beside_sockets) if each is not None]
        return sum(beside) + (self._sent.read() if self._sent is not None else 0)

    def backward(self, loss: Tensor) -> None:
        """Where parameters may stay unused, the ranks agree first on who used which."""
        if self._unused is not None:
            self._unused.agree(loss)
        super().backward(loss)

    def total(self, values: Tensor) -> Tensor:
        """Over shared memory where it can be had."""
        if self._agreement is not None:
            self._agreement.reach(SUM, elements=values.numel())
        if self.transport is not None:
            return super().total(values)
        dist.all_reduce(values)
        return values

    def reshard(self) -> None:
        """Let go of parameters that an evaluation left gathered."""
        for each in self.wrapped.values():
            each.reshard()

    def fingerprinted(self) -> nn.Module:
        """This rank's shares; of replicas the first one's (of ``hybrid``'s groups, of single numbers).

        So all ranks' add up to the whole's.
        """
        if self.group.rank == 0:
            return self.module
        first = self.group.rank < self.ranks_per_group
        named = self.module.named_parameters() if first else ()
        return Some({name: parameter for name, parameter in named if parameter.dim()})

    def state(self) -> State:
        """There is no rank that has it."""
        raise AssertionError("the state is in slices")

    def slices(self) -> Slices:
        """This rank's shares; a replica's are given by the first."""
        assert self.optimizer is not None
        self.reshard()
        return slices(self.module, self._own, self.optimizer, self.group.rank)

    def restore(self, stored: Stored) -> None:
        """Read this rank's shares."""
        assert self.optimizer is not None
        self.reshard()
        restore(self.module, self._own, self.optimizer, stored)

    def describe(self) -> dict[str, Any]:
        """What is gathered together, and how large it is."""
        sizes = {name: own_bytes(each) for name, each in self.wrapped.items()}
        return {
            "sharding": self.sharding,
            "ranks_per_group": self.ranks_per_group,
            "reduce_scatter": "ring" if self._ring is not None else "backend",
            "wrapped": [{"block": name or "(root)", "bytes": count} for name, count in sizes.items()],
            "left_to_root": self.left_to_root,
        }

    def close(self) -> None:
        """Drop the modules before the group, as with DDP."""
        self.model = self.module = nn.Identity()
        self.wrapped, self.optimizer, self._parts = {}, None, None
        gc.collect()
        if self._sent is not None:
            self._sent.close()
        if self._ring is not None:
            self._ring.transport.close()
        super().close()
        dist.barrier()
        dist.destroy_process_group()
