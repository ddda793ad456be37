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

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.plugins import Plugin
from lockstep.strategies import _serving, _slices
from lockstep.strategies._serving import Serving, Watcher
from lockstep.strategies.base import Batch, Group, Outcome, Strategy, clock, open_transport
from lockstep.transports.base import Label, Pending, Reduce, Transport, TransportError

DAY_SECONDS = 86_400.0  # without a bound nobody can say how long a worker may wait; the launcher sees a standstill


class ParameterServer(Strategy):
    """One worker."""

    def __init__(
        self,
        group: Group,
        *,
        mode: Literal["sync", "async", "ssp"] = "sync",
        staleness: Annotated[int, Field(ge=1, le=1_000_000)] = 3,
        servers: Annotated[int, Field(ge=1, le=64)] = 1,
        restarts: Annotated[int, Field(ge=0, le=100)] = 2,  # noqa: ARG002 - read from the plan
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "tcp",
    ) -> None:
        super().__init__(group)
        self.mode, self.staleness, self.servers = mode, staleness, servers
        self.exact = self.replicated = mode == "sync"
        self.transport = _joined(group, mode, servers, transport)
        self._among = _Among(group, self.transport)
        self._slices: list[_slices.Slice] = []
        self._weights = torch.empty(0)  # all parameters side by side
        self._gradients: list[Tensor] = []  # one for each server
        self._shapes: dict[str, torch.Size] = {}
        self._greeted = False
        self._share = 1.0  # of the global batch
        self._scale = 1.0  # of the summed gradient, where it is clipped
        self._sent = 0
        self._slots: dict[str, Tensor] | None = None  # the servers' optimizer state, where it has been asked for

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
        bound = {"sync": 0, "async": None, "ssp": options["staleness"]}[mode]
        return Serving(transport, group.world_size, own, weights, bound, watcher, done)

    def place(self, module: nn.Module) -> nn.Module:
        """Lay the weights out flat, so that what the servers send is received in place."""
        named = _slices.trained(module)
        self._slices = _slices.cut(named, self.servers)
        self._weights = _slices.flatten(named)
        self._gradients = [each.gradient(self._weights.dtype) for each in self._slices]
        self._shapes = {name: parameter.shape for name, parameter in named}
        return super().place(module)

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """The weights; the servers read the optimizer's state for themselves."""
        self.module.load_state_dict(state["model"])

    def steps_to_meeting(self, done: int) -> int | None:
        """A step, where all wait for all; else the first server knows who is how far."""
        return super().steps_to_meeting(done) if self.mode == "sync" else None

    def forward_backward(self, batch: Batch) -> Outcome:
        """This worker's part of the global gradient, or in the other modes the mean over its own samples."""
        assert self.transport is not None
        self._slots = None
        if not self._greeted:
            self._greeted = True
            self._ask(_serving.HELLO, self.draws[1])
        self._sent = self.transport.wire_bytes
        if self.mode == "sync":
            return super().forward_backward(batch)
        self._share = batch.samples / batch.global_samples
        return super().forward_backward(replace(batch, global_samples=max(batch.samples, 1)))

    def sync(self) -> float:
        """The norm of the summed gradient, which the servers hold; else of this worker's own."""
        began = clock()
        if self.mode == "sync":
            norm = self._push_and_sum()
            self.sync_seconds = clock() - began
            return norm
        self.sync_seconds = 0.0
        return super().sync()

    def apply(self) -> None:
        """Have the servers update, and take the weights."""
        assert self.transport is not None and self.optimizer is not None
        began, step = clock(), self.draws[1] + 1
        rate = float(self.optimizer.param_groups[0]["lr"])
        if self.mode == "sync":
            self._ask(_serving.APPLY, step, rate, self._scale)
        else:
            self._take_gradients()
            self._ask(_serving.PUSH, step, rate, self._share)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.sync_seconds += clock() - began
        self.wire_bytes = self.transport.wire_bytes - self._sent

    def agree(self) -> None:
        """All gradients are in, all workers take the weights, and the first the optimizer's state with them."""
        if self.mode == "sync":
            return
        self.total(torch.zeros(1))
        self._ask(_serving.PULL, self.draws[1] + 1)
        if self.group.rank == 0:
            self._slots = self._fetch_slots()
        self.total(torch.zeros(1))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the workers, from one to the other."""
        assert self.transport is not None
        self.transport.label = Label("all_reduce", 0, self.draws[1] + 1)
        with self._naming_servers():
            schedule = make("all_reduce", "direct", self.group.rank, self.group.world_size)
            execute.run(schedule, self._among, values.view(-1))
        return values

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The whole state, assembled from the servers'."""
        if self._slots is None:
            self._slots = self._fetch_slots()
        return {"model": dict(self.module.state_dict()), "optimizer": self._slots}

    def describe(self) -> dict[str, Any]:
        """Which server holds how much."""
        size, elements = self._weights.element_size(), max(self._weights.numel(), 1)
        held = [
            {
                "server": each.server,
                "bytes": each.elements * size,
                "share": each.elements / elements,
                "parameters": len(each.pieces),
            }
            for each in self._slices
        ]
        bound = {"sync": 0, "async": None, "ssp": self.staleness}[self.mode]
        return {"mode": self.mode, "staleness_bound": bound, "servers": held}

    def close(self) -> None:
        """Tell the servers that nothing more comes."""
        with self._naming_servers():
            for message in self._commands(_serving.LEAVE, 0):
                message.wait()
        super().close()

    def _take_gradients(self) -> None:
        gradients = {name: parameter.grad for name, parameter in self._named_parameters()}
        for own, room in zip(self._slices, self._gradients, strict=True):
            own.take(gradients, room)

    def _push_and_sum(self) -> float:
        step = self.draws[1] + 1
        self._take_gradients()
        with self._naming_servers():
            sent = self._commands(_serving.PUSH, step)
            answers = [torch.empty(_serving.ANSWER_NUMBERS, dtype=torch.float64) for _ in self._slices]
            for own, answer in zip(self._slices, answers, strict=True):
                self._receive(answer, own, "norm", step)
            for message in sent:
                message.wait()
        norm = math.sqrt(sum(float(answer[2]) for answer in answers))
        clipped = self.max_grad_norm is not None and norm > self.max_grad_norm
        self._scale = self.max_grad_norm / norm if clipped and self.max_grad_norm is not None else 1.0
        return norm

    def _ask(self, operation: int, step: int, first: float = 0.0, second: float = 0.0) -> None:
        """Send a command to every server, and take the weights that each answers with."""
        with self._naming_servers():
            sent = self._commands(operation, step, first, second)
            for own in self._slices:
                answer = torch.empty(_serving.ANSWER_NUMBERS, dtype=torch.float64)
                self._receive(answer, own, "answer", step)
                self._receive(self._weights[own.start : own.stop], own, "weights", step)
            for message in sent:
                message.wait()

    def _commands(self, operation: int, step: int, first: float = 0.0, second: float = 0.0) -> list[Pending]:
        sent = []
        for own, gradient in zip(self._slices, self._gradients, strict=True):
            command = torch.tensor([operation, step, first, second], dtype=torch.float64)
            sent.append(self._send(command, own, "command", 0))
            if operation == _serving.PUSH:
                sent.append(self._send(gradient, own, "gradient", step))
        return sent

    def _send(self, tensor: Tensor, own: _slices.Slice, operation: str, step: int) -> Pending:
        assert self.transport is not None
        self.transport.label = Label(operation, own.server, step)
        return self.transport.send(tensor, self.group.world_size + own.server)

    def _receive(self, into: Tensor, own: _slices.Slice, operation: str, step: int) -> None:
        assert self.transport is not None
        self.transport.label = Label(operation, own.server, step)
        self.transport.recv(into, self.group.world_size + own.server).wait()

    def _fetch_slots(self) -> dict[str, Tensor]:
        with self._naming_servers():
            for message in self._commands(_serving.STATE, self.draws[1] + 1):
                message.wait()
            found = [slot for own in self._slices for slot in self._slots_of(own)]
        return _slices.join_slots(found, self._shapes)

    def _slots_of(self, own: _slices.Slice) -> Iterator[tuple[_slices.Piece, str, Tensor]]:
        step = self.draws[1] + 1
        length = torch.empty(1, dtype=torch.int64)
        self._receive(length, own, "state", step)
        text = torch.empty(int(length), dtype=torch.uint8)
        self._receive(text, own, "state", step)
        for number, key, kind, dimensions in json.loads(text.numpy().tobytes()):
            piece = own.pieces[number]
            dtype = getattr(torch, kind.removeprefix("torch."))
            value = torch.empty(piece.stop - piece.start if dimensions else 1, dtype=dtype)
            self._receive(value, own, "state", step)
            yield piece, key, value if dimensions else value[0].clone()

    @contextlib.contextmanager
    def _naming_servers(self) -> Iterator[None]:
        """To the transport a server is a rank like any other."""
        try:
            yield
        except TransportError as error:
            if error.peer is not None and error.peer >= self.group.world_size:
                server = f"server {error.peer - self.group.world_size}"
                error.args = (str(error).replace(f"rank {error.peer}", server),)
            raise


def _joined(group: Group, mode: str, servers: int, chosen: str | dict[str, Any]) -> Transport:
    """The transport among workers and servers."""
    seconds = group.timeout_seconds if mode == "sync" else DAY_SECONDS
    together = replace(group, world_size=group.world_size + servers, timeout_seconds=seconds)
    return open_transport(together, chosen)


class _Among(Transport):
    """The workers' part of the transport that the servers share."""

    def __init__(self, group: Group, whole: Transport) -> None:
        super().__init__(group)
        self._whole = whole

    @property
    def label(self) -> Label:
        """The whole transport's."""
        return self._whole.label

    @label.setter
    def label(self, label: Label) -> None:
        self._whole.label = label

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """To another worker."""
        return self._whole.send(tensor, to, tag)

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """From another worker."""
        return self._whole.recv(into, source, tag)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """From another worker, added."""
        return self._whole.recv_reduce(into, source, tag, reduce)
