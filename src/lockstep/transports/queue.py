"""In one process, between threads: the transport to test and to break. Nothing in it depends on timing.

Which messages are delayed, lost, sent twice, swapped or corrupted is a function of the seed, the two ranks and
the message's number, so a failure repeats.
"""

import random
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import Tensor

from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._frames import Frame
from lockstep.transports.base import Done, Group, Label, Pending, Transport, TransportError, bytes_of


class Queue(Transport):
    """A deque per ordered pair of ranks, and faults by choice.

    ``loss``, ``duplication``, ``reordering`` and ``corruption`` are the shares of messages that meet each
    fate. A reordered message waits for the next one of its pair, and is lost where none follows.
    ``delay_seconds`` is the most that a message is held back.
    """

    def __init__(
        self,
        group: Group,
        *,
        delay_seconds: Annotated[float, Field(ge=0)] = 0.0,
        loss: Annotated[float, Field(ge=0, le=1)] = 0.0,
        duplication: Annotated[float, Field(ge=0, le=1)] = 0.0,
        reordering: Annotated[float, Field(ge=0, le=1)] = 0.0,
        corruption: Annotated[float, Field(ge=0, le=1)] = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(group)
        self.delay_seconds = delay_seconds
        self.fates = {"lost": loss, "doubled": duplication, "swapped": reordering, "corrupted": corruption}
        self.seed = seed
        self._key = group.rendezvous
        self._hub = _join(self._key, self.size)
        self._sent = [0] * self.size
        self._received = [0] * self.size
        self._lock = threading.Lock()

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """Copied at once, so there is nothing to wait for."""
        with self._lock:
            number = self._sent[to]
            self._sent[to] += 1
            self.wire_bytes += tensor.numel() * tensor.element_size()
        payload = bytearray(bytes_of(tensor))
        checksum = zlib.crc32(payload)
        draw = random.Random(f"{self.seed}/{self.rank}/{to}/{number}")
        due = time.monotonic() + draw.random() * self.delay_seconds
        fates = {name for name, chance in self.fates.items() if draw.random() < chance}
        if "corrupted" in fates and payload:
            payload[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
        message = _Message(Frame.of(self.rank, number, self.label, tag, tensor), payload, checksum, due)
        if "lost" not in fates:
            self._hub.pipes[self.rank][to].put(message, twice="doubled" in fates, later="swapped" in fates)
        return Done()

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """The next message from that rank, whatever its tag: a wrong one is an error."""
        with self._lock:
            number = self._received[source]
            self._received[source] += 1
        return _Receive(self, into, source, self.label, Frame.of(source, number, self.label, tag, into))

    def take(self, source: int, label: Label) -> "_Message":
        """Wait for the next message from a rank."""
        pipe = self._hub.pipes[source][self.rank]
        waited = RunningTime()
        with pipe.changed:
            while not pipe.messages:
                if pipe.closed:
                    raise self.gone(source, label, "has left")
                if not pipe.changed.wait(SLICE_SECONDS) and waited.seconds() > self.timeout_seconds:
                    raise self.timed_out(source, label, "nothing arrived from")
            message = pipe.messages.popleft()
        while (rest := message.due - time.monotonic()) > 0:
            if waited.seconds() > self.timeout_seconds:
                raise self.timed_out(source, label, "nothing arrived from")
            time.sleep(min(rest, SLICE_SECONDS))
        return message

    def close(self) -> None:
        """Whoever still waits for this rank is told."""
        for pipe in self._hub.pipes[self.rank]:
            with pipe.changed:
                pipe.closed = True
                pipe.changed.notify_all()
        _leave(self._key, self.rank)


class _Message(NamedTuple):
    frame: Frame
    payload: bytearray
    checksum: int
    due: float  # time.monotonic() before which it is still under way


class _Pipe:
    """From one rank to another."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: deque[_Message] = deque()
        self.held: _Message | None = None  # a reordered one, until the next has gone ahead of it
        self.closed = False

    def put(self, message: _Message, twice: bool, later: bool) -> None:
        with self.changed:
            if later and self.held is None:
                self.held = message
                return
            self.messages.extend([message] * (1 + twice))
            if self.held is not None:
                self.messages.append(self.held)
                self.held = None
            self.changed.notify_all()


class _Receive(NamedTuple):
    transport: Queue
    into: Tensor
    source: int
    label: Label
    expected: Frame

    def wait(self) -> None:
        """Copy the message in, once everything about it has been checked."""
        transport, source, label = self.transport, self.source, self.label
        message = transport.take(source, label)
        if difference := message.frame.difference(self.expected):
            raise _explained(transport.mismatch(source, label, *difference), message.frame, self.expected)
        found = zlib.crc32(message.payload)
        if found != message.checksum:
            raise transport.mismatch(
                source, label, "payload checksum", f"{found:08x}", f"{message.checksum:08x}"
            )
        if message.payload:
            bytes_of(self.into)[:] = message.payload


def _explained(error: TransportError, found: Frame, expected: Frame) -> TransportError:
    if error.field == "sequence":
        came = "a second time" if found.sequence < expected.sequence else "out of turn, or others were lost"
        error.args = (f"{error} (it came {came})",)
    return error


class _Hub:
    def __init__(self, size: int) -> None:
        self.pipes = [[_Pipe() for _ in range(size)] for _ in range(size)]
        self.left: set[int] = set()


_hubs: dict[Path, _Hub] = {}  # by rendezvous: threads of one process meet here, as processes do in a file
_hubs_lock = threading.Lock()


def _join(key: Path, size: int) -> _Hub:
    with _hubs_lock:
        return _hubs.setdefault(key, _Hub(size))


def _leave(key: Path, rank: int) -> None:
    with _hubs_lock:
        hub = _hubs.get(key)
        if hub is not None:
            hub.left.add(rank)
            if len(hub.left) == len(hub.pipes):
                del _hubs[key]
