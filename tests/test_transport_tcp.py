"""tcp: who may speak, what is refused, and which field of a message was wrong."""

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import transport_ranks as ranks_of
from conftest import wait_until
from lockstep.errors import UsageError
from lockstep.transports._frames import HEADER_BYTES
from lockstep.transports._meeting import own_address
from lockstep.transports.base import TransportError


@pytest.fixture
def pair(tmp_path: Path):
    """Two ranks of tcp, as threads; options and what happens before the second joins are the test's."""
    opened = []

    def make_pair(before: Any = None, **options: Any) -> list[Any]:
        def one(rank: int) -> Any:
            if rank == 1 and before is not None:
                address = tmp_path / "rendezvous-tcp-0"
                wait_until(address.exists)
                before(tuple(json.loads(address.read_text())))
            return ranks_of.opened("tcp", rank, 2, tmp_path, 3.0, **options)

        results = ranks_of.in_threads(2, one)
        opened.extend(each for each in results if not isinstance(each, Exception))
        return results

    yield make_pair
    for each in opened:
        each.close()


def talk(pair: list[Any]) -> None:
    """One message through: the run goes on."""
    sent = torch.arange(5.0)
    into = torch.zeros(5)
    pending = pair[0].send(sent, 1)
    pair[1].recv(into, 0).wait()
    pending.wait()
    assert torch.equal(sent, into)


def listening_sockets() -> list[str]:
    """The local addresses, in the kernel's hex, at which this process listens."""
    inodes = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(path))
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    found.append(fields[1])
    return found


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"LKSP" + bytes(68)])
def test_a_stranger_is_refused_and_does_not_disturb_the_run(pair: Any, said: bytes) -> None:
    guests = []

    def visit(address: tuple[str, int]) -> None:
        guest = socket.create_connection(address, timeout=3)
        guest.sendall(said)
        guests.append((guest, address))

    joined = pair(visit)
    talk(joined)
    guest, address = guests[0]
    with contextlib.suppress(ConnectionResetError):
        heard = guest.recv(1000)
        while more := guest.recv(1000):
            heard += more
        assert len(heard) == 32, "a stranger hears a random number, and then the end"
    guest.close()
    with pytest.raises(ConnectionRefusedError):  # nobody listens once all have met
        socket.create_connection(address, timeout=3)


@pytest.mark.parametrize("word", [b"", b"x", b"LKSP"])
def test_a_crowd_of_strangers_neither_ends_the_run_nor_keeps_a_rank_out(pair: Any, word: bytes) -> None:
    """More than are heard at once, who come while the ranks meet, and go on talking."""
    crowd: list[socket.socket] = []
    over = threading.Event()

    def come(address: tuple[str, int]) -> None:
        while not over.is_set() and len(crowd) < 400:
            with contextlib.suppress(OSError):
                guest = socket.create_connection(address, timeout=1)
                crowd.append(guest)
                guest.send(word)
            for guest in crowd[-70:] if word else ():
                with contextlib.suppress(OSError):
                    guest.send(word)

    def crowded(address: tuple[str, int]) -> None:
        coming.append(threading.Thread(target=come, args=(address,)))
        coming[0].start()
        wait_until(lambda: len(crowd) > 100)

    coming: list[threading.Thread] = []
    try:
        talk(pair(crowded))
    finally:
        over.set()
        coming[0].join()
        for guest in crowd:
            guest.close()


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch):
    """Have something done each time before rank 0, in its own thread, looks who is there: so the order is certain."""

    def have(done: Any) -> None:
        class Poll:
            def __init__(self) -> None:
                self.real, self.looks = select.poll(), itertools.count(1)
                self.register, self.unregister = self.real.register, self.real.unregister

            def poll(self, milliseconds: float) -> list[tuple[int, int]]:
                done(next(self.looks))
                return self.real.poll(milliseconds)

        itself = SimpleNamespace(poll=Poll, POLLIN=select.POLLIN)
        monkeypatch.setattr("lockstep.transports._meeting.select", itself)

    return have


def test_one_who_speaks_while_shown_out_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between_looks: Any
) -> None:
    """Who has just spoken is among the ready when another one's coming has him shown out."""
    crowd: list[socket.socket] = []

    def look(number: int) -> None:
        if number < 3:
            address = tuple(json.loads((tmp_path / "rendezvous-tcp-0").read_text()))
            for guest in crowd:
                guest.send(b"L")
            crowd.append(socket.create_connection(address, timeout=3))
        else:
            joins.set()

    def one(rank: int) -> Any:
        if rank == 1:
            wait_until(joins.is_set)
        return ranks_of.opened("tcp", rank, 2, tmp_path, 5.0)

    joins = threading.Event()
    monkeypatch.setattr("lockstep.transports._meeting._MOST_STRANGERS", 1)
    between_looks(look)
    found = ranks_of.in_threads(2, one)
    try:
        talk(found)
    finally:
        for each in (*crowd, *found):
            with contextlib.suppress(AttributeError):  # an error, or nothing, where a rank ended
                each.close()


def test_the_meeting_ends_in_time_however_many_come(tmp_path: Path, between_looks: Any) -> None:
    """There is somebody at the door at every look, also at the first one after the deadline."""
    crowd: list[socket.socket] = []

    def look(number: int) -> None:
        assert number < 4, "it goes on looking"
        address = tuple(json.loads((tmp_path / "rendezvous-tcp-0").read_text()))
        crowd.append(socket.create_connection(address, timeout=3))
        if number == 2:
            time.sleep(0.4)

    between_looks(look)
    try:
        with pytest.raises(TransportError, match=r"rank 1 did not join within 0.3 s"):
            ranks_of.opened("tcp", 0, 2, tmp_path, 0.3)
    finally:
        for guest in crowd:
            guest.close()


WITHOUT_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from lockstep.strategies.base import Group
from lockstep.transports.tcp import Tcp
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    Tcp(Group(0, 2, Path(sys.argv[1]), 2.0))
except Exception as error:
    print(error)
"""


@pytest.mark.slow
def test_strangers_who_take_all_descriptors_do_not_make_a_rank_wait_for_ever(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(tmp_path / "rendezvous")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        wait_until((tmp_path / "rendezvous-tcp-0").exists)
        address = tuple(json.loads((tmp_path / "rendezvous-tcp-0").read_text()))
        crowd = [socket.create_connection(address, timeout=3) for _ in range(50)]
        output, _ = process.communicate(timeout=60)
        for guest in crowd:
            guest.close()
    assert "rank 1 did not join within 2 s" in output


def test_a_wrong_token_is_refused(pair: Any, tmp_path: Path) -> None:
    """Rank 1 finds another secret than rank 0 made."""
    real = tmp_path / "rendezvous-tcp-token"
    kept = []

    def forge(_: Any) -> None:
        kept.append(real.read_text())
        time.sleep(0.1)
        real.write_text("00" * 32)

    first, second = pair(forge)
    assert isinstance(second, TransportError) and "refused this rank" in str(second)
    assert isinstance(first, TransportError) and "rank 1 did not join" in str(first)


def test_only_loopback_is_listened_at_and_nothing_once_all_have_met(pair: Any) -> None:
    seen = []
    joined = pair(lambda _: seen.extend(listening_sockets()))
    assert len(seen) == 2 or len(seen) == 1
    assert all(each.startswith("0100007F:") for each in seen), seen
    assert listening_sockets() == []
    talk(joined)


def test_the_secret_and_the_addresses_are_for_this_user_alone_and_go_at_the_end(
    pair: Any, tmp_path: Path
) -> None:
    joined = pair()
    files = sorted(tmp_path.glob("rendezvous-tcp-*"))
    assert len(files) == 3 and all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    for each in joined:
        each.close()
    assert not list(tmp_path.glob("rendezvous-tcp-*"))


def test_a_secret_that_others_could_read_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "rendezvous-tcp-token"
    token.write_text("00" * 32)
    token.chmod(0o644)
    with pytest.raises(UsageError, match="readable by nobody else"):
        ranks_of.opened("tcp", 1, 2, tmp_path, 1.0)


def test_listening_elsewhere_takes_an_option_that_says_where() -> None:
    assert own_address("127.0.0.0/8") == "127.0.0.1"
    with pytest.raises(UsageError, match=r"network: .*10\.0\.0\.0/24"):
        own_address("everywhere")
    with pytest.raises(UsageError, match="network: "):
        own_address("203.0.113.0/24")


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("magic", lambda header: b"HTTP" + header[4:]),
        ("version", lambda header: header[:4] + b"\xff" + header[5:]),
        ("header checksum", lambda header: header[:40] + bytes([header[40] ^ 1]) + header[41:]),
    ],
)
def test_a_header_that_was_damaged_on_the_way_is_named(pair: Any, field: str, spoil: Any) -> None:
    first, second = pair()
    wire, other = socket.socketpair()
    link, first.links[1].connection = first.links[1].connection, wire
    first.send(torch.zeros(3), 1).wait()
    message = other.recv(1000)
    link.sendall(spoil(message[:HEADER_BYTES]) + message[HEADER_BYTES:])
    first.links[1].connection = link
    wire.close(), other.close()
    with pytest.raises(TransportError) as raised:
        second.recv(torch.zeros(3), 0).wait()
    assert raised.value.field == field and raised.value.peer == 0


def test_a_message_of_another_run_is_named(pair: Any) -> None:
    first, second = pair()
    first.token = bytes(16)
    first.send(torch.zeros(3), 1).wait()
    with pytest.raises(TransportError, match="has run token of another run"):
        second.recv(torch.zeros(3), 0).wait()


def test_a_payload_that_was_damaged_on_the_way_is_found_where_that_is_asked_for(pair: Any) -> None:
    first, second = pair(payload_checksum=True)
    talk([first, second])
    tensor = torch.ones(1 << 22)  # more than the kernel takes at once: the rest is damaged under way
    pending = first.send(tensor, 1)
    tensor[-1] = 2.0
    sending = threading.Thread(target=pending.wait)
    sending.start()
    with pytest.raises(TransportError) as raised:
        second.recv(torch.zeros(1 << 22), 0).wait()
    sending.join()
    assert raised.value.field == "payload checksum"


def test_messages_larger_than_the_kernel_holds_cross_without_blocking(pair: Any) -> None:
    joined = pair()
    sent = [torch.full((6_000_001,), float(rank)) for rank in range(2)]
    into = [torch.empty_like(each) for each in sent]

    def one(rank: int) -> None:
        pending = joined[rank].send(sent[rank], 1 - rank)
        pending.wait() if rank else joined[rank].recv(into[rank], 1 - rank).wait()
        joined[rank].recv(into[rank], 1 - rank).wait() if rank else pending.wait()

    assert ranks_of.in_threads(2, one) == [None, None]
    assert torch.equal(into[0], sent[1]) and torch.equal(into[1], sent[0])
