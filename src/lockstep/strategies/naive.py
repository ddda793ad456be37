"""Data parallelism in its plainest form: after the backward pass, one blocking all-reduce per parameter.

To be read first, and to measure `allreduce` against: it is the same maths without buckets and without overlap.
"""

from typing import Annotated, Any, Literal

import torch
from torch import nn

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.plugins import Plugin
from lockstep.strategies.base import Group, Strategy, clock, open_transport
from lockstep.transports.base import Label


class Naive(Strategy):
    """Each rank sees its slice; the gradients are summed one parameter after the other."""

    def __init__(
        self,
        group: Group,
        *,
        algorithm: Literal["direct", "ring", "tree", "halving_doubling", "hierarchical"] = "ring",
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm",
    ) -> None:
        super().__init__(group)
        self.schedule = make("all_reduce", algorithm, group.rank, group.world_size)
        self.transport = open_transport(group, transport)

    def place(self, module: nn.Module) -> nn.Module:
        """Every rank begins with rank 0's weights."""
        self.share_initial_weights(module)
        return super().place(module)

    def sync(self) -> float:
        """Sum every gradient over the ranks: each is divided by the global count already.

        A rank whose samples did not use a parameter adds zeros to it; one that no rank used keeps no gradient.
        """
        assert self.transport is not None
        began, sent, step = clock(), self.transport.wire_bytes, self.draws[1] + 1
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.transport.label = Label("all_reduce of what was used", 0, step)
        used = self.total(torch.tensor([float(parameter.grad is not None) for parameter in trained]))
        for number, (parameter, ranks) in enumerate(zip(trained, used.tolist(), strict=True)):
            if not ranks:
                continue
            gradient = torch.zeros_like(parameter)  # laid out in memory as the parameter, for the optimizer
            if parameter.grad is not None:
                gradient.copy_(parameter.grad)
            flat = gradient.flatten()  # a copy only where it does not stand row by row
            self.transport.label = Label("all_reduce", number, step)
            execute.run(self.schedule, self.transport, flat)
            if flat.data_ptr() != gradient.data_ptr():
                gradient.copy_(flat.view(parameter.shape))
            parameter.grad = gradient
        self.sync_seconds = clock() - began
        self.wire_bytes = self.transport.wire_bytes - sent
        return super().sync()
