"""A worker's end of the talk with the servers of parameters; ``_serving`` is the other."""

import contextlib
import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lockstep.strategies._serving import (
    ANSWER_NUMBERS,
    APPLY,
    HELLO,
    LEAVE,
    PULL,
    PUSH,
    STATE,
)
from lockstep.strategies._slices import Piece, Slice, join_slots
from lockstep.transports.base import Label, Pending, Transport, TransportError

Gradients = dict[str, Tensor | None]  # by the parameter's name


class Servers:
    """All servers, as one worker asks them. ``weights`` is (elements,): what they answer with comes there."""

    def __init__(self, transport: Transport, workers: int, slices: list[Slice], weights: Tensor) -> None:
        self.transport, self.workers = transport, workers
        self.slices, self.weights = slices, weights
        self._gradients = [own.gradient(weights.dtype) for own in slices]

    def hello(self, done: int) -> None:
        """Take the weights after ``done`` steps; the servers must stand there too."""
        self._ask(HELLO, done)

    def pull(self, done: int) -> None:
        """Take the weights as they are now."""
        self._ask(PULL, done)

    def sum(self, step: int, gradients: Gradients) -> float:
        """Send the gradient of a step to be summed; returns the norm of the sum over all workers."""
        self._take(gradients)
        with naming_servers(self.workers):
            sent = self._commands(PUSH, step)
            answers = [torch.empty(ANSWER_NUMBERS, dtype=torch.float64) for _ in self.slices]
            for own, answer in zip(self.slices, answers, strict=True):
                self._receive(answer, own, "norm", step)
            _wait(sent)
        return math.sqrt(sum(float(answer[2]) for answer in answers))

    def apply(self, step: int, learning_rate: float, scale: float) -> None:
        """Have the sum, scaled, applied, and take the weights."""
        self._ask(APPLY, step, learning_rate, scale)

    def push(self, step: int, gradients: Gradients, learning_rate: float, share: float) -> None:
        """Have this gradient applied by itself, and take the weights."""
        self._take(gradients)
        self._ask(PUSH, step, learning_rate, share)

    def slots(self, done: int, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """The whole state of the servers' optimizers, by ``parameter/key``."""
        with naming_servers(self.workers):
            _wait(self._commands(STATE, done))
            found = [slot for own in self.slices for slot in self._slots_of(own, done)]
        return join_slots(found, shapes)

    def leave(self) -> None:
        """Nothing more will come from this worker."""
        with naming_servers(self.workers):
            _wait(self._commands(LEAVE, 0))

    def _take(self, gradients: Gradients) -> None:
        for own, room in zip(self.slices, self._gradients, strict=True):
            own.take(gradients, room)

    def _ask(self, operation: int, step: int, first: float = 0.0, second: float = 0.0) -> None:
        with naming_servers(self.workers):
            sent = self._commands(operation, step, first, second)
            for own in self.slices:
                self._receive(torch.empty(ANSWER_NUMBERS, dtype=torch.float64), own, "answer", step)
                self._receive(self.weights[own.start : own.stop], own, "weights", step)
            _wait(sent)

    def _commands(self, operation: int, step: int, first: float = 0.0, second: float = 0.0) -> list[Pending]:
        sent = []
        for own, gradient in zip(self.slices, self._gradients, strict=True):
            command = torch.tensor([operation, step, first, second], dtype=torch.float64)
            sent.append(self._send(command, own, "command", 0))
            if operation == PUSH:
                sent.append(self._send(gradient, own, "gradient", step))
        return sent

    def _slots_of(self, own: Slice, done: int) -> Iterator[tuple[Piece, str, Tensor]]:
        length = torch.empty(1, dtype=torch.int64)
        self._receive(length, own, "state", done)
        text = torch.empty(int(length), dtype=torch.uint8)
        self._receive(text, own, "state", done)
        for number, key, kind, dimensions in json.loads(text.numpy().tobytes()):
            piece = own.pieces[number]
            dtype = getattr(torch, kind.removeprefix("torch."))
            value = torch.empty(piece.stop - piece.start if dimensions else 1, dtype=dtype)
            self._receive(value, own, "state", done)
            yield piece, key, value if dimensions else value[0].clone()

    def _send(self, tensor: Tensor, own: Slice, operation: str, step: int) -> Pending:
        self.transport.label = Label(operation, own.server, step)
        return self.transport.send(tensor, self.workers + own.server)

    def _receive(self, into: Tensor, own: Slice, operation: str, step: int) -> None:
        self.transport.label = Label(operation, own.server, step)
        room = into if into.device.type == "cpu" else torch.empty_like(into, device="cpu")
        self.transport.recv(room, self.workers + own.server).wait()
        if room is not into:
            into.copy_(room)


def _wait(sent: list[Pending]) -> None:
    for message in sent:
        message.wait()


@contextlib.contextmanager
def naming_servers(workers: int) -> Iterator[None]:
    """To the transport a server is a rank like any other; to a person it is not."""
    try:
        yield
    except TransportError as error:
        if error.peer is not None and error.peer >= workers:
            server = f"server {error.peer - workers}"
            error.args = (str(error).replace(f"rank {error.peer}", server),)
        raise
