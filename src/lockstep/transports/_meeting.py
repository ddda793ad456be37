"""How the ranks of a run find each other over TCP, and how each proves that it belongs.

Rank 0 leaves a secret beside the rendezvous, in a folder that the user alone can read; every rank leaves the
address it listens at. Of each pair the higher rank connects. Both sides then prove that they know the secret by
an HMAC over the two ranks and over what the other side has just drawn, so nothing that was overheard can be said
again. Whoever cannot is dropped without a word, and the others do not wait for him. When all have met, nobody
listens any more.
"""

import contextlib
import errno
import hashlib
import hmac
import itertools
import json
import os
import secrets
import select
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.errors import UsageError
from lockstep.files import write_atomically
from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._frames import MAGIC, TOKEN_BYTES
from lockstep.transports._network import own_address
from lockstep.transports.base import Group, Label, TransportError

_POLL_SECONDS = 0.002
_NONCE_BYTES, _PROOF_BYTES = 32, 32
_HELLO = struct.Struct(f"<4sI{_NONCE_BYTES}s{_PROOF_BYTES}s")  # magic, rank, nonce, proof
_MOST_STRANGERS = 64  # that are heard at the same time
_TRIES = 100  # of a rank to introduce itself: a crowd of strangers may have had it shown out
_JOIN = Label("join")


class Meeting:
    """Every pair of ranks connected when the constructor returns. ``sockets`` maps ranks to connections."""

    def __init__(self, group: Group, network: str) -> None:
        self.rank, self.size = group.rank, group.world_size
        self.sockets: dict[int, socket.socket] = {}
        self._place = group.rendezvous
        self._seconds = group.timeout_seconds
        self._waited = RunningTime()
        address = own_address(network)
        with socket.create_server((address, 0), family=_family(address), backlog=self.size + 64) as listener:
            if self.rank == 0:
                write_atomically(self._beside("token"), secrets.token_hex(32), 0o600)
            where = json.dumps(listener.getsockname()[:2])
            write_atomically(self._beside(str(self.rank)), where, 0o600)
            self.secret = self._read_secret()
            try:
                for peer in range(self.rank):
                    self._connect(peer)
                self._accept(listener)
            except BaseException:
                for connection in self.sockets.values():
                    connection.close()
                raise

    @property
    def frame_token(self) -> bytes:
        """What every header carries: it names the run, and does not give the secret away."""
        return hmac.digest(self.secret, b"frames", "sha256")[:TOKEN_BYTES]

    def _beside(self, name: str) -> Path:
        return self._place.with_name(f"{self._place.name}-tcp-{name}")

    def _read(self, name: str, peer: int) -> str:
        """The content of a file that another rank leaves, once it is there."""
        while True:
            try:
                return self._beside(name).read_text(encoding="utf-8")
            except FileNotFoundError:
                self._pause(peer)

    def _read_secret(self) -> bytes:
        text = self._read("token", 0)
        path = self._beside("token")
        status = path.stat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise UsageError(f"{path} must belong to this user and be readable by nobody else")
        return bytes.fromhex(text)

    def _pause(self, peer: int) -> None:
        if self._waited.seconds() > self._seconds:
            raise self._failed(peer, f"did not join within {self._seconds:g} s", "hang")
        time.sleep(_POLL_SECONDS)

    def _failed(self, peer: int, how: str, cause: str = "exception") -> TransportError:
        return TransportError(f"rank {peer} {how}", rank=self.rank, peer=peer, label=_JOIN, cause=cause)

    def _proof(self, role: bytes, low: int, high: int, *nonces: bytes) -> bytes:
        """Only who knows the secret can make it; for one role, one pair and one occasion."""
        text = MAGIC + role + struct.pack("<II", low, high) + b"".join(nonces)
        return hmac.digest(self.secret, text, hashlib.sha256)

    def _connect(self, peer: int) -> None:
        for tries in itertools.count(1):
            self.sockets[peer] = self._reach(peer)
            try:
                self._introduce(self.sockets[peer], peer)
                return
            except OSError as error:
                self.sockets.pop(peer).close()
                if tries == _TRIES:
                    raise self._failed(peer, f"refused this rank, or died ({error})") from None
                self._pause(peer)

    def _reach(self, peer: int) -> socket.socket:
        while True:
            address = tuple(json.loads(self._read(str(peer), peer)))
            try:
                return socket.create_connection(address, timeout=SLICE_SECONDS)
            except OSError:
                self._pause(peer)  # an earlier process may have left the address

    def _introduce(self, connection: socket.socket, peer: int) -> None:
        """Prove to a peer that this rank belongs, and have it prove the same."""
        theirs = self._exactly(connection, _NONCE_BYTES, peer)
        mine = secrets.token_bytes(_NONCE_BYTES)
        proof = self._proof(b"connect", peer, self.rank, theirs, mine)
        connection.sendall(_HELLO.pack(MAGIC, self.rank, mine, proof))
        answer = self._exactly(connection, _PROOF_BYTES, peer)
        if not hmac.compare_digest(answer, self._proof(b"accept", peer, self.rank, mine, theirs)):
            raise self._failed(peer, "could not prove that it belongs to this run")

    def _exactly(self, connection: socket.socket, count: int, peer: int) -> bytes:
        """So many bytes from a peer, whose connection has a timeout of a slice."""
        found = b""
        while len(found) < count:
            try:
                more = connection.recv(count - len(found))
            except TimeoutError:
                if self._waited.seconds() > self._seconds:
                    how = f"did not answer within {self._seconds:g} s"
                    raise self._failed(peer, how, "hang") from None
                continue
            if not more:
                raise ConnectionError("it closed the connection")
            found += more
        return found

    def _accept(self, listener: socket.socket) -> None:
        """Hear everyone who connects, all at once, until every higher rank has proven itself."""
        guests: dict[int, _Guest] = {}
        listener.setblocking(False)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while missing := [rank for rank in range(self.rank + 1, self.size) if rank not in self.sockets]:
                ready = poll.poll(SLICE_SECONDS * 1000)
                if self._waited.seconds() > self._seconds:  # whatever strangers keep saying
                    raise self._failed(missing[0], f"did not join within {self._seconds:g} s", "hang")
                for descriptor, _ in ready:
                    if descriptor == listener.fileno():
                        self._greet(listener, guests, poll)
                    # One that was shown out since is still among the ready.
                    elif (guest := guests.get(descriptor)) is not None and guest.heard():
                        del guests[descriptor]
                        poll.unregister(descriptor)
                        self._judge(guest)
        finally:
            for guest in guests.values():
                guest.connection.close()

    def _greet(self, listener: socket.socket, guests: "dict[int, _Guest]", poll: select.poll) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._show_out(guests, poll)
            return  # gone again, or to be greeted when there is a descriptor for it
        try:
            connection.setblocking(False)
            guest = _Guest(connection)
            connection.send(guest.nonce)
        except OSError:
            connection.close()
            return
        if len(guests) >= _MOST_STRANGERS:
            self._show_out(guests, poll)
        guests[connection.fileno()] = guest
        poll.register(connection, select.POLLIN)

    def _show_out(self, guests: "dict[int, _Guest]", poll: select.poll) -> None:
        """The one who has been here longest: a rank says all that it has to within milliseconds."""
        if not guests:
            time.sleep(_POLL_SECONDS)  # no descriptor is left, and none of them is a guest's
            return
        oldest = next(iter(guests))
        poll.unregister(oldest)
        guests.pop(oldest).connection.close()

    def _judge(self, guest: "_Guest") -> None:
        """Take in a peer; drop anybody else."""
        if len(guest.said) == _HELLO.size:
            magic, rank, nonce, proof = _HELLO.unpack(guest.said)
            expected = self._proof(b"connect", self.rank, rank, guest.nonce, nonce)
            wanted = self.rank < rank < self.size and rank not in self.sockets
            if magic == MAGIC and hmac.compare_digest(proof, expected) and wanted:
                with contextlib.suppress(OSError):  # it died at once: whoever waits for it will find out
                    guest.connection.send(self._proof(b"accept", self.rank, rank, nonce, guest.nonce))
                self.sockets[rank] = guest.connection
                return
        guest.connection.close()

    def leave(self) -> None:
        """Remove what this rank left beside the rendezvous."""
        self._beside(str(self.rank)).unlink(missing_ok=True)
        if self.rank == 0:
            self._beside("token").unlink(missing_ok=True)


@dataclass
class _Guest:
    """Somebody who has connected, and has not proven anything yet."""

    connection: socket.socket
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))
    said: bytes = b""

    def heard(self) -> bool:
        """Read on; whether that is all there is to hear, which it is of who does not begin as a rank does."""
        try:
            more = self.connection.recv(_HELLO.size - len(self.said))
        except BlockingIOError:
            return False
        except OSError:
            more = b""
        self.said += more
        begins_well = self.said[: len(MAGIC)] == MAGIC[: len(self.said)]
        return not more or not begins_well or len(self.said) == _HELLO.size


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
