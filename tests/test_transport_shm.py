"""shm: nothing is left after any death, the bits repeat, and processors that reorder writes are refused."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import transport_ranks as ranks_of
from conftest import alive, wait_until
from lockstep.errors import UsageError
from lockstep.transports import shm
from lockstep.transports._slots import Slots
from lockstep.transports.base import Label, TransportError
from marks import slow
from transport_start import Start


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Start]:
    """Jobs on real processes."""
    started = Start(server, tmp_path)
    yield started
    started.close()


def shared_memory() -> set[str]:
    """Everything with a name in the machine's shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir()}


@pytest.mark.parametrize("victims", [[0], [1], [0, 1, 2], [2, 0]])
@pytest.mark.parametrize("joining", [[0, 1, 2], [0, 1]], ids=["running", "joining"])
def test_no_death_leaves_shared_memory_behind(start: Start, victims: list[int], joining: list[int]) -> None:
    before = shared_memory()
    pids = start("waits_for_ever", 3, transport="shm", ranks=3, only=joining)
    ready = "joined" if len(joining) == 3 else "here"
    wait_until(lambda: all((start.folder / f"{ready}-{rank}").exists() for rank in range(3)))
    assert shared_memory() == before, "it has no name while it is used, either"
    for rank in victims:
        os.kill(pids[rank], signal.SIGKILL)
    for rank in {0, 1, 2} - set(victims):
        os.kill(pids[rank], signal.SIGKILL)
    start.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))
    assert shared_memory() == before


def test_ranks_that_reduce_different_things_in_shared_memory_are_told(tmp_path: Path) -> None:
    def one(rank: int) -> None:
        ours = ranks_of.opened("shm", rank, 2, tmp_path, 3.0)
        ours.label = Label("all_reduce", 0, 5 + rank)
        ours.all_reduce(torch.zeros(10))

    first, second = ranks_of.in_threads(2, one)
    assert first.field == second.field == "step" and "has step 6, and 5 was expected" in str(first)


def test_the_all_reduce_in_shared_memory_repeats_its_bits(tmp_path: Path) -> None:
    def one(rank: int) -> list[bytes]:
        ours = ranks_of.opened("shm", rank, 3, tmp_path, 10.0, piece_kb=4)
        results = []
        for _ in range(3):
            buffer = ranks_of.part(rank, 30_011, torch.float32)
            ours.all_reduce(buffer)
            results.append(buffer.numpy().tobytes())
        ours.close()
        return results

    results = ranks_of.in_threads(3, one)
    assert len({bits for rank in results for bits in rank}) == 1


def test_processors_that_reorder_writes_are_refused_in_one_line() -> None:
    shm.require_order("x86_64")
    with pytest.raises(UsageError, match="needs an x86-64 processor, and this is aarch64") as raised:
        shm.require_order("aarch64")
    assert "\n" not in str(raised.value)


def test_a_segment_that_an_earlier_process_left_word_of_is_passed_over(tmp_path: Path) -> None:
    word = {"pid": 1, "start_ticks": -1, "descriptor": 3, "bytes": 1}
    (tmp_path / "rendezvous-shm").write_text(json.dumps(word))
    with pytest.raises(TransportError, match="rank 0 did not create the shared memory within"):
        ranks_of.opened("shm", 1, 2, tmp_path, 0.2)


@pytest.mark.parametrize(("ranks", "rounds", "looks"), [
    (4, 600, False), slow(2, 30_000, False), slow(2, 30_000, True), slow(3, 20_000, True), slow(5, 10_000, False),
])  # fmt: skip
def test_no_wake_up_is_ever_lost(start: Start, ranks: int, rounds: int, looks: bool) -> None:
    """A rank that slept through what it waits for would sleep for the minute after which it looks by itself."""
    start("longest_sleep", ranks, ranks=ranks, rounds=rounds, looks=looks)
    start.wait()
    assert max(start.result(rank) for rank in range(ranks)) < 50


def test_what_a_thread_could_not_push_the_one_that_kept_it_from_pushing_does() -> None:
    """Else its message would lie there until somebody of this rank waits again."""
    transport: Any = SimpleNamespace(rank=0, size=2)
    slots = Slots(transport, None, SimpleNamespace(ring=lambda _: None))  # type: ignore[arg-type]
    looks = []

    class Full:
        finished = False

        def push(self) -> bool:
            looks.append(threading.current_thread().name)
            if len(looks) == 1:  # its slots are free a moment later, when another thread comes by
                other = threading.Thread(target=slots.push)
                other.start()
                other.join()
            return False

    slots._under_way[1].append(Full())  # type: ignore[arg-type]
    slots.push()
    assert looks == [threading.main_thread().name] * 2
