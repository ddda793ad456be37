"""Framed messages over TCP: every header says what the message is, and one that is not the next is an error.

Between ranks of one machine it uses loopback alone. Nothing is copied on the way: the kernel reads from and
writes to the tensors. No thread is needed either: whoever waits, for whatever it is, also goes on with what it
still has to send, so two ranks that send each other more than the kernel holds do not block each other.
"""

import select
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lockstep.transports._frames import (
    BYE,
    HEADER_BYTES,
    PAYLOAD_CHECKED,
    BadHeader,
    Frame,
    pack,
    unpack,
)
from lockstep.transports._meeting import Meeting
from lockstep.transports.base import Group, Label, Pending, Reduce, Transport, bytes_of

_PIECE_BYTES = 1 << 20  # what is reduced at once: it has just come in, and is still in the cache
_LOOK_SECONDS = 0.5


class Tcp(Transport):
    """One connection for each pair of ranks.

    ``network`` is where peers may be: this machine alone, unless told otherwise (then a private network; the
    payload is not encrypted). ``payload_checksum`` adds a CRC-32 of each payload to that of its header.
    """

    header_bytes = HEADER_BYTES

    def __init__(self, group: Group, *, network: str = "127.0.0.0/8", payload_checksum: bool = False) -> None:
        super().__init__(group)
        self.payload_checksum = payload_checksum
        self._meeting = Meeting(group, network)
        self.token = self._meeting.frame_token
        self.links = {peer: Link(connection) for peer, connection in self._meeting.sockets.items()}

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """Hand the kernel as much of it as it takes; the rest goes while this rank waits."""
        link = self.links[to]
        frame = Frame.of(self.rank, link.sent, self.label, tag, tensor)
        data = bytes_of(tensor)
        checked = (PAYLOAD_CHECKED, zlib.crc32(data)) if self.payload_checksum else ()
        send = Send(self, to, pack(frame, self.token, *checked), data)
        with link.lock:
            link.sent += 1
            self.wire_bytes += HEADER_BYTES + len(data)
            link.sends.append(send)
        self.push(to, self.label)
        return send

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """The next message from that rank; read when it is waited for."""
        return self._receive(into, source, tag, None)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """Reduced piece by piece as it comes in: ``reduce`` must work element by element."""
        return self._receive(into, source, tag, reduce)

    def _receive(self, into: Tensor, source: int, tag: int, reduce: Reduce | None) -> "Receive":
        link = self.links[source]
        frame = Frame.of(source, link.received, self.label, tag, into)
        link.received += 1
        return Receive(self, source, into, frame, reduce)

    def push(self, peer: int, label: Label) -> None:
        """Go on with what is being sent to a rank."""
        link = self.links[peer]
        if link.sends and link.lock.acquire(blocking=False):
            try:
                while link.sends and link.sends[0].push(link.connection):
                    link.sends.popleft()
            except OSError:
                raise self.gone(peer, label, "died: its connection is broken") from None
            finally:
                link.lock.release()

    def until(self, attempt: Callable[[], bool], peer: int, label: Label, receiving: bool) -> None:
        """Try again whenever the kernel has something, until it succeeds; keep sending to all meanwhile."""
        began = time.monotonic()
        while not attempt():
            left = began + self.timeout_seconds - time.monotonic()
            if left <= 0:
                what = "nothing arrived from" if receiving else "nothing was taken by"
                raise self.timed_out(peer, label, what)
            poll = select.poll()
            for rank, link in self.links.items():
                wanted = select.POLLOUT if link.sends else 0
                wanted |= select.POLLIN if receiving and rank == peer else 0
                wanted |= 0 if link.ended else select.POLLRDHUP
                if wanted:
                    poll.register(link.connection, wanted)
            for descriptor, event in poll.poll(min(left, _LOOK_SECONDS) * 1000):
                rank = next(rank for rank, link in self.links.items() if link.descriptor == descriptor)
                if event & select.POLLOUT:
                    self.push(rank, label)
                if event & ~select.POLLOUT and not (receiving and rank == peer):
                    self._look(rank, label)

    def _look(self, rank: int, label: Label) -> None:
        """A connection has ended that is not being read: its rank may be whom the awaited peer waits for."""
        link = self.links[rank]
        link.ended = True
        try:
            last = link.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            last = b""
        if not last:  # else it is a goodbye, or what will be read in its turn
            raise self.gone(rank, label, "died: its connection ended without a goodbye")

    def close(self) -> None:
        """Say goodbye, so that the end of the connections is not taken for a death."""
        for link in self.links.values():
            try:
                while link.connection.recv(
                    1 << 16
                ):  # closing with something unread would cut off what was sent
                    pass
            except OSError:
                pass
            try:
                goodbye = Frame(self.rank, link.sent, 0, 0, b"", 0, 0, 0)
                link.connection.send(pack(goodbye, self.token, BYE))
                link.connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            link.connection.close()
        self._meeting.leave()


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

    def __init__(self, transport: Tcp, to: int, header: bytes, data: memoryview) -> None:
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
        self, transport: Tcp, source: int, into: Tensor, expected: Frame, reduce: Reduce | None
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
        step = into.numel() if reduce is None else min(into.numel(), _PIECE_BYTES // size)
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
            if self._transport.payload_checksum:
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

    def _mismatch(self, field: str, found: object, expected: object) -> Exception:
        return self._transport.mismatch(self._source, self._label, field, found, expected)
