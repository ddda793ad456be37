"""Data parallelism on our own collectives: buckets of gradients, reduced while the backward pass goes on.

Hooks on the parameters notice each gradient as autograd finishes it. It is copied into its bucket, and a bucket
that is full is reduced by a second thread, in an order that is the same on every rank; the last one, for which
nothing is left to overlap with, by the thread that waits anyway. Li et al., VLDB 2020.
"""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from lockstep import plugins
from lockstep.collectives.cost import choose
from lockstep.collectives.schedule import Schedule, make
from lockstep.collectives.topology import Topology
from lockstep.compressors.base import Compressor
from lockstep.errors import RunFailed
from lockstep.plugins import Plugin
from lockstep.strategies._buckets import Bucket, Reducer, cut
from lockstep.strategies._invariant import Invariant
from lockstep.strategies._snapshots import Snapshots
from lockstep.strategies.base import Batch, Group, Outcome, Shard, Strategy, clock, open_transport


class AllReduce(Strategy):
    """``algorithm`` and ``transport`` say how, ``bucket_mb`` how much at once (1 MB is 1,000,000 bytes),
    ``compressor`` how few bytes.

    ``reduction: invariant`` sums eight virtual shards in one fixed order, so that the bits are the same at any
    world size; it computes each shard by itself, which costs small batches their efficiency. A compressor makes
    the training another one than the single process', and what it has left over is dropped on resume.
    ``ranks_per_machine`` tells which ranks stand together, for ``hierarchical`` and for ``auto``, which chooses by
    the costs of messages inside and between machines; they are given, not measured as the run starts, because
    another choice would sum in another order: ``lockstep collectives bench`` measures them.
    For ``snapshot_steps`` the hooks leave each gradient's norm and digest in the run's ``snapshots/``, before and
    after the reduction, and with ``snapshot_tensors`` the gradients themselves.
    """

    def __init__(
        self,
        group: Group,
        *,
        algorithm: Literal["auto", "direct", "ring", "tree", "halving_doubling", "hierarchical"] = "auto",
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm",
        bucket_mb: Annotated[float, Field(gt=0, le=4096)] = 25.0,
        overlap: bool = True,
        reduction: Literal["fast", "invariant"] = "fast",
        compressor: Annotated[str | dict[str, Any] | None, Plugin("compressors")] = None,
        ranks_per_machine: Annotated[int, Field(ge=1)] | None = None,
        inside_alpha_us: Annotated[float, Field(gt=0)] = 2.0,
        inside_gb_per_second: Annotated[float, Field(gt=0)] = 50.0,
        between_alpha_us: Annotated[float, Field(gt=0)] = 10.0,
        between_gb_per_second: Annotated[float, Field(gt=0)] = 12.5,
        add_gb_per_second: Annotated[float, Field(gt=0)] = 50.0,
        snapshot_steps: tuple[Annotated[int, Field(ge=1)], ...] = (),
        snapshot_tensors: bool = False,
    ) -> None:
        super().__init__(group)
        self.algorithm, self.overlap = algorithm, overlap
        self.topology = Topology.of(
            group.world_size,
            ranks_per_machine,
            (inside_alpha_us, inside_gb_per_second),
            (between_alpha_us, between_gb_per_second),
            add_gb_per_second,
        )
        self.bucket_bytes = round(bucket_mb * 1e6)
        self.compressor = None if compressor is None else self._opened(compressor)
        self.exact = self.compressor is None
        if self.compressor is not None and reduction == "invariant":
            raise RunFailed(
                "distributed.strategy.compressor: reduction: invariant promises bits that a compressor changes; "
                "set one of the two aside"
            )
        self.transport = open_transport(group, transport)
        self.invariant = Invariant(group, self.transport) if reduction == "invariant" else None
        self.draws_by_shard = self.invariant is not None
        self.buckets: list[Bucket] = []
        self.reasons: list[str] = []
        self._homes: dict[nn.Parameter, tuple[Bucket, int]] = {}
        self._names: dict[nn.Parameter, str] = {}
        self.snapshots: Snapshots | None = None  # of the step that goes on, where it was asked for
        self._snapshots = Snapshots(
            group.record / "snapshots", group.rank, [*snapshot_steps], snapshot_tensors
        )
        self._reducer: Reducer | None = None
        self._sent = 0
        self._accumulating = False
        self._seen: set[Tensor] = set()  # parameters whose gradient was finished in this backward pass

    def shard(self) -> Shard:
        """One slice a rank; its virtual shards where the reduction is invariant."""
        return self.invariant.shard if self.invariant else super().shard()

    def place(self, module: nn.Module) -> nn.Module:
        """Cut the parameters into buckets, give every rank rank 0's weights, and hook the gradients."""
        super().place(module)
        self._names = {parameter: name for name, parameter in self._named_parameters()}
        parameters = [*self._names]
        self.share_initial_weights(module)
        # Gradients become ready about in the reverse of the order in which the parameters are used.
        self.buckets = cut(parameters[::-1], self.bucket_bytes)
        for bucket in self.buckets:
            bucket.schedule = self.schedule_for(bucket.flat)
            for place, parameter in enumerate(bucket.parameters):
                self._homes[parameter] = bucket, place
                parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
        assert self.transport is not None
        self._reducer = Reducer(
            self.buckets, self.transport, self.overlap and self.group.world_size > 1, self.compressor
        )
        return self.model

    def _opened(self, chosen: str | dict[str, Any]) -> Compressor:
        options = dict(chosen) if isinstance(chosen, dict) else {"name": chosen}
        name = options.pop("name")
        compressor: Compressor = plugins.load("compressors", name)(**options)
        if compressor.direct and self.algorithm not in ("auto", "direct"):
            raise RunFailed(
                f"distributed.strategy.algorithm is {self.algorithm}: the compressor {name} exchanges directly, "
                "so that codes need not be decoded on the way; allowed: auto, direct"
            )
        return compressor

    def schedule_for(self, flat: Tensor) -> Schedule:
        """The algorithm asked for, or the one that the cost model finds cheapest."""
        algorithm: str = self.algorithm
        if algorithm == "auto":
            assert self.transport is not None
            if self.compressor is not None and self.compressor.direct:
                algorithm, reason = "direct", "compressed gradients are decoded where they arrive"
            elif self.transport.all_reduce is not None:
                algorithm, reason = "direct", "the transport reduces in place, which no messages can better"
            else:
                algorithm, reason = choose("all_reduce", flat.nbytes, self.topology)
            self.reasons.append(f"{flat.nbytes:,} bytes: {algorithm}, {reason}")
        return make("all_reduce", algorithm, self.group.rank, self.group.world_size, self.topology)

    def _on_gradient(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and self._reducer is not None
        if self._accumulating:
            return
        self._seen.add(parameter)
        if self.invariant is not None:
            self._note(parameter, parameter.grad)
            return
        bucket, place = self._homes[parameter]
        if place in bucket.ready and self._reducer.has(bucket):
            raise RunFailed(
                f"allreduce: the gradient of {self._names[parameter]} came twice in one backward pass, as reentrant "
                "activation checkpointing makes it, when its bucket was on its way already. Use "
                "torch.utils.checkpoint with use_reentrant=False, or set distributed.strategy.overlap to false"
            )
        bucket.take(place)
        self._note(parameter, bucket.views[place])  # with what came of it before
        if bucket.is_full:
            self._reducer.on_full()

    def _note(self, parameter: nn.Parameter, gradient: Tensor | None) -> None:
        if self.snapshots is not None and gradient is not None:
            self.snapshots.take("local", self._names[parameter], gradient)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """The hooks leave the gradients where autograd adds them up."""
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    def accumulate(self, batch: Batch) -> Outcome:
        """As ever; then what only an earlier micro-batch used, so that no hook fired for it in the last one's."""
        self._seen.clear()
        outcome = super().accumulate(batch)
        for parameter in self._homes:
            if parameter.grad is not None and parameter not in self._seen:
                self._on_gradient(parameter)
        return outcome

    def forward_backward(self, batch: Batch) -> Outcome:
        """One pass over this rank's slice, or one over each of its virtual shards."""
        assert self.transport is not None and self._reducer is not None
        self._sent = self.transport.wire_bytes
        self._reducer.begin(self.draws[1] + 1)
        if self.compressor is not None:
            self.compressor.begin(self.passes.loss_scale.value)
        self.snapshots = self._snapshots if self._snapshots.begin(self.draws[1] + 1) else None
        if self.invariant is None:
            return super().forward_backward(batch)
        return self.invariant.passes(self, batch)

    def sync(self) -> float:
        """Wait until every bucket is reduced, and give the parameters their gradients back."""
        assert self.transport is not None and self._reducer is not None
        began = clock()
        if self.invariant is not None:
            self.invariant.reduce(self.buckets, self.draws[1] + 1)
        else:
            self._reducer.finish()
        for bucket in self.buckets:
            bucket.give_back()
        self._leave_snapshots()
        self.sync_seconds = clock() - began
        self.wire_bytes = self.transport.wire_bytes - self._sent
        norm = super().sync()
        if self.compressor is not None and self.passes.loss_scale.overflowed:
            self.compressor.undo()
        return norm

    def _leave_snapshots(self) -> None:
        if self.snapshots is None:
            return
        self.snapshots.shard = None
        for parameter, name in self._names.items():
            if parameter.grad is not None:
                self.snapshots.take("reduced", name, parameter.grad)
        self.snapshots.write()
        self.snapshots = None

    def describe(self) -> dict[str, Any]:
        """Buckets, and which algorithm was chosen for each and why."""
        return {
            "buckets": [
                {
                    "bytes": bucket.flat.nbytes,
                    "algorithm": "invariant" if self.invariant else _algorithm(bucket.schedule),
                }
                for bucket in self.buckets
            ],
            "reasons": self.reasons,
        }

    def close(self) -> None:
        """End the thread, then leave."""
        if self._reducer is not None:
            self._reducer.close()
        super().close()


def _algorithm(schedule: Schedule | None) -> str | None:
    return schedule.algorithm if schedule else None
