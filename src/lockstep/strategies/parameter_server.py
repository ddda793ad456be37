"""Servers hold the weights and update them; the workers compute gradients and ask for the weights.

Li et al., "Scaling Distributed Machine Learning with the Parameter Server", OSDI 2014. Three modes:

- ``sync``: the servers add the gradients of all workers and make one update a step; it is the single process.
- ``async``: each gradient is an update of its own as soon as it comes, made with weights that others may have
  updated since they were asked for (Dean et al., "Large Scale Distributed Deep Networks", NIPS 2012). It moves by
  its share of the learning rate: the gradients of one global batch together move as far as one update of it.
- ``ssp``: as async, but no worker is more than ``staleness`` steps ahead of the slowest (Ho et al., NIPS 2013).

In the last two the workers meet at the end of each epoch, for the validation, and where a checkpoint is taken:
it holds every gradient of the steps before it and none of a later one. The servers are processes of their own,
numbered after the workers; each holds an equal slice of the weights. One that is killed is started again from the
last checkpoint, up to ``restarts`` times, and the workers go back to that checkpoint with it.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.plugins import Plugin
from lockstep.strategies import _slices
from lockstep.strategies._among import Among
from lockstep.strategies._asking import Gradients, Servers, naming_servers
from lockstep.strategies._serving import Serving, Watcher
from lockstep.strategies._written import refuse_writes, versions
from lockstep.strategies.base import Batch, Group, Outcome, Strategy, clock, open_transport
from lockstep.transports.base import Label, Transport

# Without a bound nobody can say how long a worker may wait; the launcher sees it when nobody moves any more.
DAY_SECONDS = 86_400.0


class ParameterServer(Strategy):
    """One worker. The servers' side is made by ``serve``."""

    updates_weights = False  # the servers do
    scales_loss = False  # the servers would have to agree on a scale
    reduces_gradients = False  # only the servers hold the sum, each its slice of it

    def __init__(
        self,
        group: Group,
        *,
        mode: Literal["sync", "async", "ssp"] = "sync",
        staleness: Annotated[int, Field(ge=1, le=1_000_000)] = 3,
        servers: Annotated[int, Field(ge=1, le=64)] = 1,
        restarts: Annotated[int, Field(ge=0, le=100)] = 2,  # noqa: ARG002 - the pipeline reads it from the plan
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "tcp",
    ) -> None:
        super().__init__(group)
        self.mode, self.bound, self.count = mode, _bound(mode, staleness), servers
        self.exact = self.replicated = mode == "sync"
        self.transport = _joined(group, mode, servers, transport)
        self._among = Among(group, self.transport)
        self._servers: Servers | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._greeted = False
        self._share = 1.0  # of the global batch
        self._scale = 1.0  # of the summed gradient, where it is clipped
        self._sent = 0
        self._slots: dict[str, Tensor] | None = None  # the servers' optimizer state, where it was asked for

    @classmethod
    def serve(
        cls, group: Group, module: nn.Module, watcher: Watcher, done: int, options: dict[str, Any]
    ) -> Serving:
        """The server process's side. ``group.rank`` is its number after those of the workers."""
        mode, servers = options["mode"], options["servers"]
        transport = _joined(group, mode, servers, options["transport"])
        named = _slices.trained(module)
        own = _slices.cut(named, servers)[group.rank - group.world_size]
        weights = _slices.flatten(named)[own.start : own.stop].clone()
        bound = _bound(mode, options["staleness"])
        return Serving(transport, group.world_size, own, weights, bound, watcher, done)

    @property
    def servers(self) -> Servers:
        """The other end; known once the model is."""
        assert self._servers is not None
        return self._servers

    def place(self, module: nn.Module) -> nn.Module:
        """Lay the weights out flat, so that what the servers send is received in place."""
        assert self.transport is not None
        self.share_initial_weights(module)  # what is not trained, the servers do not send
        named = _slices.trained(module)
        slices = _slices.cut(named, self.count)
        self._servers = Servers(self.transport, self.group.world_size, slices, _slices.flatten(named))
        self._shapes = {name: parameter.shape for name, parameter in named}
        return super().place(module)

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """The weights; the servers read the optimizer's state for themselves."""
        self.module.load_state_dict(state["model"])

    def steps_to_meeting(self, done: int) -> int | None:
        """One step, where all wait for all; else the first server knows who is how far."""
        return super().steps_to_meeting(done) if self.mode == "sync" else None

    def forward_backward(self, batch: Batch) -> Outcome:
        """This worker's part of the global gradient, or in the other modes the mean over its own samples."""
        assert self.transport is not None
        self._slots = None
        if not self._greeted:
            self._greeted = True
            self.servers.hello(self.draws[1])
        self._sent = self.transport.wire_bytes
        if self.mode == "sync":
            return super().forward_backward(batch)
        self._share = batch.samples / batch.global_samples
        return super().forward_backward(replace(batch, global_samples=max(batch.samples, 1)))

    def accumulate(self, batch: Batch) -> Outcome:
        """RunFailed where the model writes to a weight that the servers hold."""
        named = dict(self._named_parameters())
        before = versions(named)
        outcome = super().accumulate(batch)
        refuse_writes(before, named, "the servers, which hold it, do not see that")
        return outcome

    def sync(self) -> float:
        """The norm of the summed gradient, which no process holds whole; else of this worker's own."""
        self.sync_seconds = 0.0
        if self.mode != "sync":
            return super().sync()
        began = clock()
        norm = self.servers.sum(self.draws[1] + 1, self._gradients())
        clipped = self.max_grad_norm is not None and norm > self.max_grad_norm
        self._scale = self.max_grad_norm / norm if clipped and self.max_grad_norm is not None else 1.0
        self.sync_seconds = clock() - began
        return norm

    def apply(self) -> None:
        """Have the servers update, and take the weights."""
        assert self.transport is not None and self.optimizer is not None
        began, step = clock(), self.draws[1] + 1
        rate = float(self.optimizer.param_groups[0]["lr"])
        if self.mode == "sync":
            self.servers.apply(step, rate, self._scale)
        else:
            self.servers.push(step, self._gradients(), rate, self._share)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.sync_seconds += clock() - began
        self.wire_bytes = self.transport.wire_bytes - self._sent

    def _gradients(self) -> Gradients:
        return {name: parameter.grad for name, parameter in self._named_parameters()}

    def agree(self) -> None:
        """All gradients are in, all workers take the weights, and the first the optimizer's state with them."""
        if self.mode == "sync":
            return
        done = self.draws[1] + 1
        self.total(torch.zeros(1))
        self.servers.pull(done)
        if self.group.rank == 0:
            self._slots = self.servers.slots(done, self._shapes)
        self.total(torch.zeros(1))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the workers, from one to the other."""
        assert self.transport is not None
        self.transport.label = Label("all_reduce", 0, self.draws[1] + 1)
        schedule = make("all_reduce", "direct", self.group.rank, self.group.world_size)
        with naming_servers(self.group.world_size):
            execute.run(schedule, self._among, values.view(-1))
        return values

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The whole state, assembled from the servers'."""
        if self._slots is None:
            self._slots = self.servers.slots(self.draws[1] + 1, self._shapes)
        return {"model": dict(self.module.state_dict()), "optimizer": self._slots}

    def describe(self) -> dict[str, Any]:
        """Which server holds how much."""
        weights = self.servers.weights
        held = [
            {
                "server": own.server,
                "bytes": own.elements * weights.element_size(),
                "share": own.elements / weights.numel(),
                "parameters": len(own.pieces),
            }
            for own in self.servers.slices
        ]
        return {"mode": self.mode, "staleness_bound": self.bound, "servers": held}

    def close(self) -> None:
        """Tell the servers that nothing more comes."""
        self.servers.leave()
        super().close()


def _bound(mode: str, staleness: int) -> int | None:
    """How many steps a worker may be ahead of the slowest."""
    return {"sync": 0, "ssp": staleness}.get(mode)


def _joined(group: Group, mode: str, servers: int, chosen: str | dict[str, Any]) -> Transport:
    """The transport among workers and servers."""
    seconds = group.timeout_seconds if mode == "sync" else DAY_SECONDS
    together = replace(group, world_size=group.world_size + servers, timeout_seconds=seconds)
    return open_transport(together, chosen)
