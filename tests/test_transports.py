"""Transports: the plain sum over each of them, and every way in which a message can go wrong, named."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import transport_ranks as ranks_of
from lockstep import plugins
from lockstep.collectives import execute
from lockstep.collectives.schedule import PAIRS, chunk_bounds, closed_form, make
from lockstep.collectives.topology import Topology
from lockstep.errors import RunFailed
from lockstep.transports.base import Label, TransportError
from marks import quick_are
from transport_start import Start

TRANSPORTS = plugins.names("transports")
PROCESSES = [name for name in TRANSPORTS if name != "queue"]


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Start]:
    """Jobs on real processes."""
    started = Start(server, tmp_path)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("transport", "count"),
    quick_are(
        [("shm", 4), *((name, count) for name in TRANSPORTS for count in (1, 2, 3))],
        [*((name, count) for name in TRANSPORTS for count in (1, 2, 3, 4)), ("queue", 5), ("queue", 7)],
    ),
)
def test_every_schedule_on_every_transport_equals_the_plain_sum(
    start: Start, tmp_path: Path, transport: str, count: int
) -> None:
    """Sizes below the number of ranks, of one element and of a prime number; every type of a gradient."""
    results = start.run("all_sums", count, transport, ranks=count)
    assert all(result == results[0] for result in results), "the ranks differ in their bits"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("count", [2, 3])
def test_bytes_on_the_wire_are_those_of_theory_and_the_headers(
    start: Start, tmp_path: Path, transport: str, count: int
) -> None:
    elements = 7919 * 12  # every algorithm cuts it evenly
    topology = Topology(count, 2)
    results = start.run("bytes_sent", count, transport, ranks=count, elements=elements, per_machine=2)
    kind = plugins.load("transports", transport)
    for rank, counts in enumerate(results):
        for algorithm in PAIRS:
            if algorithm == "direct" and kind.all_reduce is not None:
                assert counts[algorithm] == 4 * elements  # everything is written into the shared memory once
                continue
            schedule = make("all_reduce", algorithm, rank, count, topology)
            sends = [each for round_ in schedule.rounds for each in round_ if each.kind == "send"]
            bounds = chunk_bounds(elements, schedule.chunks)
            sent = [bounds[each.chunks[-1]][1] - bounds[each.chunks[0]][0] for each in sends]
            assert counts[algorithm] == 4 * sum(sent) + kind.header_bytes * len(sends)
            theory = closed_form("all_reduce", algorithm, rank, count, topology).sent
            assert sum(sent) == pytest.approx(theory * elements, abs=len(sends))


@pytest.mark.parametrize("transport", quick_are(["shm", "gloo"], TRANSPORTS))
def test_a_peer_that_stalls_is_named_with_operation_bucket_and_step(
    start: Start, tmp_path: Path, transport: str
) -> None:
    seen, _ = start.run("stalls", 2, transport, seconds=0.7)
    assert seen["peer"] == 1 and seen["cause"] == "hang"
    for word in ("rank 0,", "rank 1", "gather", "bucket 3", "step 17", "0.7 s"):
        assert word in seen["message"]


@pytest.mark.parametrize("transport", PROCESSES)
@pytest.mark.parametrize("algorithm", ["ring", "direct"])
def test_a_killed_peer_is_named_long_before_the_timeout(start: Start, transport: str, algorithm: str) -> None:
    start("dies", 3, transport=transport, ranks=3, dead=2, algorithm=algorithm)
    start.wait()
    seen = [start.result(0), start.result(1)]
    first = min(seen, key=lambda each: each["seconds"])
    assert first["peer"] == 2 and "rank 2 died" in first["message"]
    for each in seen:
        assert each["seconds"] < 10, "the timeout is 30 s"
        assert f"bucket 4, step {each['step']}" in each["message"]


@pytest.mark.parametrize("transport", ["queue", "shm", "tcp"])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("step", {"step": 9}),
        ("bucket", {"bucket": 9}),
        ("operation", {"operation": "tree"}),
        ("tag", {"tag": 9}),
        ("dtype", {"dtype": "float16", "elements": 12}),
        ("length", {"elements": 2}),
    ],
)
def test_a_message_that_is_not_the_expected_one_ends_the_run_and_the_field_is_named(
    start: Start, tmp_path: Path, transport: str, field: str, change: dict[str, Any]
) -> None:
    results = start.run("mismatched", 2, transport, change=change, options={})
    assert results[1]["field"] == field and f"from rank 0 has {field}" in results[1]["message"]
    assert "bucket 1, step 2" in results[1]["message"]


def faulty(folder: Path, seconds: float = 0.3, **options: Any) -> list[str]:
    """Ten rounds of an all-reduce on a transport with faults; what each of three ranks says."""

    def one(rank: int) -> str:
        ours = ranks_of.opened("queue", rank, 3, folder, seconds, **options)
        try:
            for step in range(10):
                ours.label = Label("all_reduce", 0, step)
                buffer = torch.full((50,), float(rank))
                execute.run(make("all_reduce", "ring", rank, 3), ours, buffer)
                assert torch.equal(buffer, torch.full((50,), 3.0))
        except RunFailed as error:
            return str(error)
        finally:
            ours.close()
        return "well"

    return ranks_of.in_threads(3, one)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"loss": 1.0}, "nothing arrived from"),
        ({"duplication": 1.0}, "it came a second time"),
        ({"corruption": 1.0}, "payload checksum"),
    ],
)
def test_faults_of_the_queue_are_found_and_named(tmp_path: Path, fault: dict[str, float], words: str) -> None:
    said = faulty(tmp_path, **fault)
    assert any(words in each for each in said), said
    assert all("all_reduce ring, bucket 0, step" in each for each in said)


def test_messages_out_of_order_are_found_and_named(tmp_path: Path) -> None:
    sender = ranks_of.opened("queue", 0, 2, tmp_path, 1.0, reordering=1.0)
    receiver = ranks_of.opened("queue", 1, 2, tmp_path, 1.0)
    for value in (1.0, 2.0):
        sender.send(torch.tensor([value]), 1)
    with pytest.raises(TransportError, match=r"has sequence 1, and 0 was expected.*out of turn"):
        receiver.recv(torch.empty(1), 0).wait()
    sender.close(), receiver.close()


def test_the_same_seed_brings_the_same_faults(tmp_path: Path) -> None:
    """Only who fails first is told by all; the rank next to the fault is the one to compare."""

    def losses(seed: int) -> list[bool]:
        sender = ranks_of.opened("queue", 0, 2, tmp_path, 0.01, loss=0.5, seed=seed)
        for _ in range(40):
            sender.send(torch.zeros(1), 1)
        arrived = {message.frame.sequence for message in sender._hub.pipes[0][1].messages}
        ranks_of.opened("queue", 1, 2, tmp_path, 0.01).close()
        sender.close()
        return [number in arrived for number in range(40)]

    assert losses(1) == losses(1) != losses(2)


def test_delays_change_nothing_but_time(tmp_path: Path) -> None:
    assert faulty(tmp_path, 10.0, delay_seconds=0.002) == ["well"] * 3


def test_a_type_that_is_not_sent_is_refused_in_words(tmp_path: Path) -> None:
    sender = ranks_of.opened("queue", 0, 2, tmp_path, 1.0)
    with pytest.raises(RunFailed, match=r"a tensor to send is complex64, allowed: float16, bfloat16"):
        sender.send(torch.zeros(2, dtype=torch.complex64), 1)
    ranks_of.opened("queue", 1, 2, tmp_path, 1.0).close()
    sender.close()


def test_a_transport_needs_only_the_fields_of_a_group(tmp_path: Path) -> None:
    group = SimpleNamespace(rank=0, world_size=1, rendezvous=tmp_path / "rendezvous", timeout_seconds=1.0)
    for name in ("queue", "shm", "tcp"):
        ours = plugins.load("transports", name)(group)
        assert (ours.rank, ours.size, ours.wire_bytes) == (0, 1, 0)
        ours.close()
