"""FSDP's reduce-scatter by our ring, which sends the least that any can.

gloo's own sends every rank's whole buffer round: 2 (N-1)/N S from each rank for a buffer of S bytes, where the ring
sends (N-1)/N S. The all-gathers are gloo's, which are ideal.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.errors import RunFailed
from lockstep.strategies._among import Among
from lockstep.strategies.base import Group, open_transport
from lockstep.transports.base import Label, Pending, Reduce, Transport
from lockstep.transports.shm import Shm


class Neighbours(Among):
    """``group.world_size`` ranks of a transport side by side, of which the first has the number ``first`` there."""

    def __init__(self, group: Group, whole: Transport, first: int) -> None:
        super().__init__(group, whole)
        self._first = first

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """To another of them."""
        return super().send(tensor, self._first + to, tag)

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """From another of them."""
        return super().recv(into, self._first + source, tag)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """From another of them, and added."""
        return super().recv_reduce(into, self._first + source, tag, reduce)

    @property
    def beside_sockets(self) -> Transport | None:
        """The transport, where the kernel does not count what it sends."""
        return self._whole if isinstance(self._whole, Shm) else None

    def close(self) -> None:
        """Close the transport, which nobody else uses."""
        self._whole.close()


def neighbours_of(group: Group, within: int, transport: str | dict[str, Any]) -> Neighbours:
    """This rank's group of ``within`` that stand side by side, on a transport of all ranks that is opened here."""
    place = group.rendezvous.with_name(f"{group.rendezvous.name}-ring")
    whole = open_transport(replace(group, rendezvous=place), transport)
    own = replace(group, rank=group.rank % within, world_size=within)
    return Neighbours(own, whole, group.rank - group.rank % within)


class RingReduceScatter(ReduceScatter):
    """What ``FSDPModule.set_custom_reduce_scatter`` takes; for tensors on the CPU."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.schedule = make("reduce_scatter", "ring", transport.rank, transport.size)
        self.bucket = self.step = 0

    def begin(self, step: int) -> None:
        """The buckets of a step are counted from 0."""
        self.bucket, self.step = 0, step

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Memory of the moment, as the default does it."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> None:
        """Sum, in place in the input, which FSDP does not look at again; this rank's share to the output."""
        assert group.size() == self.transport.size and not async_op
        average = op == dist.ReduceOp.AVG
        if not average and op != dist.ReduceOp.SUM:
            raise RunFailed(
                f"the ring sums and averages, and FSDP asked for {op}; set reduce_scatter: backend"
            )
        self.transport.label = Label("reduce_scatter ring", self.bucket, self.step)
        self.bucket += 1
        flat = input_tensor.view(-1)
        execute.run(self.schedule, self.transport, flat)
        share = output_tensor.numel()
        output_tensor.copy_(flat[share * self.transport.rank :][:share].view_as(output_tensor))
        if average:
            output_tensor.div_(self.transport.size)
