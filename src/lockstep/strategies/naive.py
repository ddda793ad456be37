"""Data parallelism in its plainest form: after the backward pass, one blocking all-reduce per parameter.

To be read first, and to measure `allreduce` against: it is the same maths without buckets and without overlap.
"""

from typing import Annotated, Any

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.plugins import Plugin
from lockstep.strategies.base import Group, Strategy, clock, open_transport


class Naive(Strategy):
    """Each rank sees its slice; the gradients are summed one parameter after the other."""

    def __init__(
        self,
        group: Group,
        *,
        algorithm: str = "ring",
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm",
    ) -> None:
        super().__init__(group)
        self.schedule = make("all_reduce", algorithm, group.rank, group.world_size)
        self.transport = open_transport(group, transport)

    def sync(self) -> float:
        """Sum every gradient over the ranks: each is divided by the global count already."""
        assert self.transport is not None
        began, sent = clock(), self.transport.wire_bytes
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                execute.run(self.schedule, self.transport, parameter.grad.view(-1))
        self.sync_seconds = clock() - began
        self.wire_bytes = self.transport.wire_bytes - sent
        return super().sync()
