"""Framed messages over TCP: every header says what the message is, and one that is not the next is an error.

Between ranks of one machine it uses loopback alone. Nothing is copied on the way: the kernel reads from and
writes to the tensors. No thread is needed either: whoever waits, for whatever it is, also goes on with what it
still has to send, so two ranks that send each other more than the kernel holds do not block each other.
"""

import select
import socket
import threading
import zlib
from collections.abc import Callable

from torch import Tensor

from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._frames import BYE, HEADER_BYTES, PAYLOAD_CHECKED, Frame, pack
from lockstep.transports._meeting import Meeting
from lockstep.transports._stream import Link, Receive, Send
from lockstep.transports._waiting import give_way
from lockstep.transports.base import Group, Label, Pending, Reduce, Transport, bytes_of

_LOOKS = 10  # at a connection, giving way to whoever is ready, before the kernel is asked to wake this rank


class Tcp(Transport):
    """One connection for each pair of ranks.

    ``network`` is where peers may be: this machine alone, unless told otherwise (then a private network; the
    payload is not encrypted). ``payload_checksum`` adds a CRC-32 of each payload to that of its header.
    """

    header_bytes = HEADER_BYTES

    def __init__(self, group: Group, *, network: str = "127.0.0.0/8", payload_checksum: bool = False) -> None:
        super().__init__(group)
        self.payload_checksum = payload_checksum
        self._counting = threading.Lock()
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
        link.sent += 1
        link.sends.append(send)
        with self._counting:
            self.wire_bytes += HEADER_BYTES + len(data)
        self.push(to, self.label)
        return send

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """The next message from that rank; read when it is waited for."""
        return self._receive(into, source, tag, None)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """Reduced piece by piece as it comes in: ``reduce`` must work element by element."""
        return self._receive(into, source, tag, reduce)

    def _receive(self, into: Tensor, source: int, tag: int, reduce: Reduce | None) -> Receive:
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
        for _ in range(_LOOKS):
            if attempt():
                return
            give_way()
        waited = RunningTime()
        while not attempt():
            if waited.seconds() > self.timeout_seconds:
                what = "nothing arrived from" if receiving else "nothing was taken by"
                raise self.timed_out(peer, label, what)
            poll = select.poll()
            for rank, link in self.links.items():
                wanted = select.POLLOUT if link.sends else 0
                wanted |= select.POLLIN if receiving and rank == peer else 0
                wanted |= 0 if link.ended else select.POLLRDHUP
                if wanted:
                    poll.register(link.connection, wanted)
            for descriptor, event in poll.poll(SLICE_SECONDS * 1000):
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
