"""The seam between what is sent and how it travels. A collective knows a transport by these names alone.

Rules that every transport keeps:

- Messages from one rank to another arrive in the order they were sent, and ``tag`` must be what the receiver
  expects: a mismatch ends the run, it never picks another message.
- ``send`` and ``recv`` do not wait for the peer; ``wait`` does, up to the group's timeout. A tensor that is
  being sent must not change, and one that is being received into must not be read, before its wait returned.
- Different threads may talk to different peers at the same time; the same pair is one thread's at a time.
- Every failure is a ``TransportError`` that names rank, peer, operation, bucket and step.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lockstep.errors import RunFailed

Reduce = Callable[[Tensor, Tensor], object]  # takes the second into the first, in place


class Group(Protocol):
    """The ranks that talk to each other, as one of them sees it (``strategies.base.Group`` is one)."""

    @property
    def rank(self) -> int:
        """This rank's number."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def rendezvous(self) -> Path:
        """A path in a folder that the user alone can read; what must be found by all stands beside it."""

    @property
    def timeout_seconds(self) -> float:
        """The longest that any wait lasts."""


@dataclass(frozen=True)
class Label:
    """What a message belongs to. Both sides state it; it travels where the transport has headers."""

    operation: str = "message"
    bucket: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"{self.operation}, bucket {self.bucket}, step {self.step}"


class TransportError(RunFailed):
    """A message that did not arrive, or was not the one expected.

    ``rank`` is who noticed, ``peer`` the other side; ``field`` is the part of a message that did not match,
    None for a death or a timeout. The record's ``cause`` is hang for a timeout, else exception.
    """

    def __init__(
        self,
        what: str,
        *,
        rank: int,
        peer: int | None,
        label: Label,
        field: str | None = None,
        cause: str = "exception",
    ) -> None:
        super().__init__(f"rank {rank}, {label}: {what}", cause, rank)
        self.peer = peer
        self.label = label
        self.field = field

    @property
    def is_echo(self) -> bool:
        """Whether it only says that somebody else is gone, who has the cause."""
        return self.field is None and self.cause != "hang"


class Pending(Protocol):
    """A message under way."""

    def wait(self) -> None:
        """Return when it is sent (its tensor may change) or has arrived. Raises TransportError."""


class _Labelled(threading.local):
    label = Label()


class Transport:
    """One rank's end of a transport. ``header_bytes`` is what each message costs on top of its payload."""

    header_bytes = 0
    all_reduce: Callable[[Tensor], None] | None = None  # a faster way than messages, where there is one

    def __init__(self, group: Group) -> None:
        self.rank = group.rank
        self.size = group.world_size
        self.timeout_seconds = group.timeout_seconds
        self.wire_bytes = 0  # sent by this rank so far, payload and headers
        self._thread = _Labelled()

    @property
    def label(self) -> Label:
        """What the next messages of this thread belong to; set by whoever sends them."""
        return self._thread.label

    @label.setter
    def label(self, label: Label) -> None:
        self._thread.label = label

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """Send a contiguous CPU tensor."""
        raise NotImplementedError

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """Receive into a contiguous CPU tensor of the shape and type that was sent."""
        raise NotImplementedError

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """Receive, and reduce into ``into`` while waiting for it (so not before ``wait`` is called)."""
        scratch = torch.empty_like(into)
        return _Reducing(self.recv(scratch, source, tag), into, scratch, reduce)

    def close(self) -> None:
        """Tell the peers that this rank leaves on purpose, and let go of everything."""

    def timed_out(self, peer: int, label: Label, what: str) -> TransportError:
        """The error of a wait that lasted too long: the peer is stalled, or what it sent was lost."""
        return TransportError(
            f"{what} rank {peer} within {self.timeout_seconds:g} s; it stalls, or the message was lost",
            rank=self.rank,
            peer=peer,
            label=label,
            cause="hang",
        )

    def gone(self, peer: int, label: Label, how: str) -> TransportError:
        """The error of a peer that can no longer answer."""
        return TransportError(f"rank {peer} {how}", rank=self.rank, peer=peer, label=label)

    def mismatch(
        self, peer: int, label: Label, field: str, found: object, expected: object
    ) -> TransportError:
        """The error of a message that is not the one expected."""
        return TransportError(
            f"a message from rank {peer} has {field} {found}, and {expected} was expected",
            rank=self.rank,
            peer=peer,
            label=label,
            field=field,
        )


class Done:
    """A message that needs no waiting for."""

    def wait(self) -> None:
        """Nothing to wait for."""


@dataclass
class _Reducing:
    """A message that is reduced as soon as it has arrived and its place may change."""

    inner: Pending
    into: Tensor
    scratch: Tensor
    reduce: Reduce

    def wait(self) -> None:
        """Wait for the message, then take it in."""
        self.inner.wait()
        self.reduce(self.into, self.scratch)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes; nothing is copied."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu", "contiguous CPU tensors only"
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
