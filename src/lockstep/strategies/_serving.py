"""A server of parameters: it holds a slice of the weights and its optimizer's state, and answers the workers.

One thread for each worker, so that none waits for another unless the mode says so. Every request says which
step it belongs to, and is refused unless it is the one that must come next from that worker.
"""

import json
import threading
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lockstep.errors import RunFailed
from lockstep.strategies._slices import Slice, cut_slots
from lockstep.transports.base import Label, Transport

HELLO, PUSH, APPLY, PULL, STATE, LEAVE = range(1, 7)
NAMES = {HELLO: "hello", PUSH: "gradient", APPLY: "update", PULL: "pull", STATE: "state", LEAVE: "leave"}
COMMAND_NUMBERS = 4  # fp64: operation, step, and two of its own
ANSWER_NUMBERS = 3  # fp64: version, staleness, norm squared


class Watcher(Protocol):
    """Who is told what a server does."""

    def progress(self, least: int, most: int) -> None:
        """Every worker has done ``least`` steps and one has done ``most``; nobody has been answered yet."""

    def update(self, **fields: Any) -> None:
        """The weights have been updated."""


class Serving:
    """One server at work."""

    def __init__(
        self,
        transport: Transport,
        workers: int,
        own: Slice,
        weights: Tensor,
        bound: int | None,
        watcher: Watcher,
        done: int = 0,
    ) -> None:
        """``weights`` is (elements,), the slice's own; ``bound`` is how many steps a worker may be ahead.

        0 is the synchronous mode, in which all gradients of a step make one update; None is no bound.
        """
        self.transport, self.workers, self.own, self.weights = transport, workers, own, weights
        self.bound, self.watcher = bound, watcher
        self.parameters = [nn.Parameter(piece.of(weights)) for piece in own.pieces]
        self.optimizer: Optimizer | None = None
        self.version = 0
        self._clocks: list[float] = [done] * workers  # the last step of each worker that is in the weights
        self._seen = [0] * workers  # the version that each computes with
        self._inbox = [own.gradient(weights.dtype) for _ in range(workers)]
        self._outbox = [torch.empty_like(weights) for _ in range(workers)]
        self._wanted: list[tuple[float, float]] = [(0.0, 0.0)] * workers  # learning rate, scale
        self._norm_squared = 0.0
        self._changed = threading.Condition()
        self._errors: list[BaseException] = []
        # No limits here: a thread that is missing waits for its worker, which the transport has a limit for.
        self._summed = threading.Barrier(workers, self._sum)
        self._updated = threading.Barrier(workers, self._update_together)

    def named(self) -> dict[str, nn.Parameter]:
        """Its part of each parameter, by the whole's name."""
        names = (piece.name for piece in self.own.pieces)
        return dict(zip(names, self.parameters, strict=True))

    def load(self, slots: dict[str, Tensor]) -> None:
        """Take this slice's part of a whole optimizer state."""
        assert self.optimizer is not None
        for piece, parameter in zip(self.own.pieces, self.parameters, strict=True):
            if found := cut_slots(slots, piece, parameter.detach()):
                self.optimizer.state[parameter] = found

    def serve(self) -> None:
        """Return when every worker has left. Raises what went wrong first."""
        threads = [
            threading.Thread(target=self._attend, args=(rank,), name=f"worker-{rank}", daemon=True)
            for rank in range(self.workers)
        ]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._errors or min(self._clocks) == float("inf"))
        if self._errors:
            raise self._errors[0]
        for thread in threads:
            thread.join()

    def _attend(self, rank: int) -> None:
        try:
            while self._answer(rank):
                pass
        except BaseException as error:
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()
            self._summed.abort()
            self._updated.abort()

    def _answer(self, rank: int) -> bool:
        """Hear a worker's next command and carry it out; False when it leaves."""
        command = torch.empty(COMMAND_NUMBERS, dtype=torch.float64)
        self._receive(command, rank, "command", 0)
        operation, step, first, second = command.tolist()
        match operation:
            case _ if operation == LEAVE:
                with self._changed:
                    self._clocks[rank] = float("inf")
                    self._changed.notify_all()
                return False
            case _ if operation == STATE:
                self._send_state(rank, int(step))
            case _ if operation in (HELLO, PULL):
                self._expect(rank, operation, step, self._clocks[rank])
                self._reply(rank, int(step), 0)
            case _ if operation == PUSH:
                self._expect(rank, operation, step, self._clocks[rank] + 1)
                self._receive(self._inbox[rank], rank, "gradient", int(step))
                if self.bound == 0:
                    self._summed.wait()
                    norm = torch.tensor([self.version, 0, self._norm_squared], dtype=torch.float64)
                    self._send(norm, rank, "norm", int(step))
                else:
                    self._reply(rank, int(step), self._update_alone(rank, int(step), first, second))
            case _ if operation == APPLY and self.bound == 0:
                self._expect(rank, operation, step, self._clocks[rank] + 1)
                self._wanted[rank] = first, second
                self._updated.wait()
                self._reply(rank, int(step), 0)
            case _:
                raise self._refused(rank, f"sent operation {operation}, which there is not")
        return True

    def _expect(self, rank: int, operation: float, step: float, expected: float) -> None:
        if step != expected:
            what = NAMES[int(operation)]
            raise self._refused(rank, f"sent the {what} of step {step:g}, and step {expected:g} was expected")

    def _refused(self, rank: int, what: str) -> RunFailed:
        return RunFailed(f"server {self.own.server}: rank {rank} {what}")

    def _sum(self) -> None:
        """All gradients are in: add them in the order of the ranks. Every other thread waits."""
        total = self._inbox[0]
        for other in self._inbox[1:]:
            total += other
        gradient = total[: self.own.elements]
        self._norm_squared = float(torch.dot(gradient.double(), gradient.double()))

    def _update_together(self) -> None:
        """One update by the sum. Every other thread waits."""
        if len(set(self._wanted)) != 1:
            raise RunFailed(
                f"server {self.own.server}: the workers ask for different updates: {self._wanted}"
            )
        step = int(self._clocks[0]) + 1
        seconds = self._step(self._inbox[0], *self._wanted[0])
        self._clocks = [step] * self.workers
        self.watcher.update(step=step, rank=None, version=self.version, staleness=0, update_seconds=seconds)
        self.watcher.progress(step, step)

    def _update_alone(self, rank: int, step: int, learning_rate: float, share: float) -> int:
        """An update by one worker's gradient; returns by how many updates the weights it used were behind."""
        with self._changed:
            staleness = self.version - self._seen[rank]
            seconds = self._step(self._inbox[rank], learning_rate * share, 1.0) if share else 0.0
            self._clocks[rank] = step
            if share:
                self.watcher.update(
                    step=step, rank=rank, version=self.version, staleness=staleness, update_seconds=seconds
                )
            present = [int(clock) for clock in self._clocks if clock != float("inf")]
            self.watcher.progress(min(present), max(present))
            self._changed.notify_all()
            if self.bound is not None:
                least = step - self.bound
                self._changed.wait_for(lambda: self._errors or min(self._clocks) >= least)
        return staleness

    def _step(self, gradient: Tensor, learning_rate: float, scale: float) -> float:
        """The optimizer's step by a gradient, except for parameters that had none; returns the seconds."""
        assert self.optimizer is not None
        began = perf_counter()
        if scale != 1.0:
            gradient.mul_(scale)  # the marks stay above zero
        used = gradient[self.own.elements :].tolist()
        for piece, parameter, mark in zip(self.own.pieces, self.parameters, used, strict=True):
            parameter.grad = piece.of(gradient) if mark else None
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.version += 1
        return perf_counter() - began

    def _reply(self, rank: int, step: int, staleness: int) -> None:
        """The weights as they are now; what is sent is a copy, since others may update them meanwhile."""
        with self._changed:
            self._outbox[rank].copy_(self.weights)
            self._seen[rank] = self.version
            answer = torch.tensor([self.version, staleness, 0], dtype=torch.float64)
        self._send(answer, rank, "answer", step)
        self._send(self._outbox[rank], rank, "weights", step)

    def _send_state(self, rank: int, step: int) -> None:
        """The optimizer's state: what it consists of, then each tensor."""
        assert self.optimizer is not None
        with self._changed:
            slots = [
                (number, key, value.clone())
                for number, parameter in enumerate(self.parameters)
                for key, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            ]
        described = [[number, key, str(value.dtype), value.dim()] for number, key, value in slots]
        text = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
        self._send(torch.tensor([text.numel()]), rank, "state", step)
        self._send(text, rank, "state", step)
        for _, _, value in slots:
            self._send(value.reshape(-1), rank, "state", step)

    def _send(self, tensor: Tensor, rank: int, operation: str, step: int) -> None:
        self.transport.label = Label(operation, self.own.server, step)
        self.transport.send(tensor, rank).wait()

    def _receive(self, into: Tensor, rank: int, operation: str, step: int) -> None:
        self.transport.label = Label(operation, self.own.server, step)
        self.transport.recv(into, rank).wait()
