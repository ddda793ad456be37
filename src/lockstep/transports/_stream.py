"""Messages on one connection: what is still to be sent of one, and what is still to come."""

import socket
import threading
import zlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lockstep.transports._frames import BYE, HEADER_BYTES, PAYLOAD_CHECKED, BadHeader, Frame, unpack
from lockstep.transports.base import Reduce, TransportError, bytes_of

if TYPE_CHECKING:
    from lockstep.transports.tcp import Tcp

PIECE_BYTES = 1 << 20  # what is reduced at once: it has just come in, and is still in the cache


class Link:
    """The connection to one peer."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.descriptor = connection, connection.fileno()
        self.sent = self.received = 0  # messages
        self.sends: deque[Send] = deque()
        self.lock = threading.Lock()
        self.ended = False
        self.scratch = torch.empty(0, dtype=torch.uint8)  # where pieces come in that are then reduced


class Send:
    """A message on its way out."""

    def __init__(self, transport: "Tcp", to: int, header: bytes, data: memoryview) -> None:
        self._transport, self._to, self._label = transport, to, transport.label
        self._rest = [memoryview(header), data]

    def push(self, connection: socket.socket) -> bool:
        """Hand on what the kernel takes; whether all is gone."""
        while self._rest:
            try:
                count = connection.sendmsg(self._rest)
            except BlockingIOError:
                return False
            while self._rest and count >= len(self._rest[0]):
                count -= len(self._rest.pop(0))
            if self._rest:
                self._rest[0] = self._rest[0][count:]
        return True

    def wait(self) -> None:
        """Until the kernel has all of it."""
        while self._rest:
            before = sum(map(len, self._rest))
            self._transport.until(partial(self._moved, before), self._to, self._label, False)

    def _moved(self, before: int) -> bool:
        self._transport.push(self._to, self._label)
        return sum(map(len, self._rest)) < before


class Receive:
    """A message to be read: header and payload in one go, into the tensor or piece by piece."""

    def __init__(
        self, transport: "Tcp", source: int, into: Tensor, expected: Frame, reduce: Reduce | None
    ) -> None:
        assert into.is_contiguous()
        self._transport, self._source, self._label = transport, source, transport.label
        self._into, self._expected, self._reduce = into.detach().reshape(-1), expected, reduce
        self._link = transport.links[source]
        self._header = bytearray(HEADER_BYTES)
        self._checked = False
        self._checksum = 0

    def wait(self) -> None:
        """Until it is all there and found to be the message that was expected."""
        into, reduce, size = self._into, self._reduce, self._into.element_size()
        step = into.numel() if reduce is None else min(into.numel(), PIECE_BYTES // size)
        if reduce is not None and self._link.scratch.numel() < step * size:
            self._link.scratch = torch.empty(step * size, dtype=torch.uint8)
        todo: list[memoryview] = [memoryview(self._header)]
        for start in range(0, max(into.numel(), 1), max(step, 1)):
            part = into[start : start + step]
            piece = part if reduce is None else self._link.scratch[: part.numel() * size].view(into.dtype)
            data = bytes_of(piece)
            todo.append(data)
            while todo:
                self._transport.until(partial(self._read, todo), self._source, self._label, True)
            if self._flags & PAYLOAD_CHECKED:
                self._checksum = zlib.crc32(data, self._checksum)
            if reduce is not None:
                reduce(part, piece)
        if self._flags & PAYLOAD_CHECKED and self._checksum != self._claimed:
            raise self._mismatch("payload checksum", f"{self._checksum:08x}", f"{self._claimed:08x}")

    def _read(self, todo: list[memoryview]) -> bool:
        """Read into the parts of a message that are still to be filled; whether anything came."""
        try:
            count = self._link.connection.recvmsg_into(todo)[0] if any(map(len, todo)) else 1
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if not count:
            raise self._transport.gone(
                self._source, self._label, "died: its connection ended without a goodbye"
            )
        while todo and count >= len(todo[0]):
            count -= len(todo.pop(0))
            if not self._checked:
                self._check()  # at once: the payload of another message may never be as long as this one's
        if todo:
            todo[0] = todo[0][count:]
        return True

    def _check(self) -> None:
        self._checked = True
        try:
            found, self._flags, self._claimed = unpack(self._header, self._transport.token)
        except BadHeader as error:
            raise self._mismatch(error.field, error.found, error.expected) from None
        if self._flags & BYE:
            raise self._transport.gone(self._source, self._label, "has left")
        if difference := found.difference(self._expected):
            raise self._mismatch(*difference)
        if self._transport.payload_checksum and not self._flags & PAYLOAD_CHECKED:
            raise self._mismatch("payload checksum", "none", "one")

    def _mismatch(self, field: str, found: object, expected: object) -> TransportError:
        return self._transport.mismatch(self._source, self._label, field, found, expected)
