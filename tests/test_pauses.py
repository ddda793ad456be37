"""Pause and continue: time in which a process did not run is nobody's silence."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import wait_until
from lockstep import running_time
from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.engine import saving
from lockstep.errors import RunFailed
from lockstep.launchers import supervise
from lockstep.running_time import RunningTime
from marks import slow
from pausing import pause
from training import SMALL, bits
from transport_start import Start


class Clock:
    """Stands in for ``time.monotonic``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(running_time.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Iterator[Start]:
    """Jobs on real processes."""
    started = Start(server, tmp_path)
    yield started
    started.close()


def test_a_pause_is_not_counted_and_gives_the_peers_as_long_again(clock: Clock) -> None:
    waited = RunningTime()
    for _ in range(100):
        clock.now += 0.05
        counted = waited.seconds()
    assert counted == pytest.approx(5.0)
    clock.now += 2.0
    assert waited.seconds() == pytest.approx(3.0)
    clock.now += 3600.0
    assert waited.seconds() == 0.0
    for _ in range(100):
        clock.now += 0.5  # a busy machine
        counted = waited.seconds()
    assert counted == pytest.approx(50.0)


@pytest.mark.parametrize("transport", ["shm", "tcp", "gloo"])
def test_a_wait_outlasts_a_pause_and_the_peer_that_is_continued_later(
    start: Start, tmp_path: Path, transport: str
) -> None:
    pids = start("answers_when_told", 2, transport=transport, seconds=1.0)
    for rank in range(2):
        wait_until((tmp_path / f"here-{rank}").exists)
    time.sleep(0.1)  # rank 0 waits by now
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.6)
    os.kill(pids[0], signal.SIGCONT)
    time.sleep(0.4)
    os.kill(pids[1], signal.SIGCONT)
    (tmp_path / "go").touch()
    start.wait()
    assert start.result(0) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_torchs_own_groups_count_no_pause_against_a_peer(start: Start) -> None:
    start("limits_of_torch", 2)
    start.wait()
    year = 365 * 24 * 3600
    assert len(start.result(0)) == 3
    assert min(start.result(0)) > year


def test_the_launcher_counts_its_own_time_and_still_reports_a_hang(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raised(*_: object) -> None:
        raise RunFailed("no rank has moved", "hang")

    monkeypatch.setattr(supervise, "raise_hang", raised)
    log = tmp_path / "log"
    with Board.create(tmp_path / "board", 2) as board, Board(tmp_path / "board", 0) as rank:
        for each in (rank, Board(tmp_path / "board", 1)):
            each.enter("compute")
        watched = supervise.Watched(SimpleNamespace(), SimpleNamespace(), [log, log], board, 3.0)  # type: ignore[arg-type]
        supervise.check_lives(watched, board)
        clock.now += 50.0  # a pause of all
        for _ in range(29):
            clock.now += 0.1
            supervise.check_lives(watched, board)
        rank.enter("compute")
        for _ in range(30):
            supervise.check_lives(watched, board)
            clock.now += 0.1
        with pytest.raises(RunFailed, match="no rank has moved"):
            for _ in range(5):
                supervise.check_lives(watched, board)
                clock.now += 0.1


def test_rank_0_waits_for_lines_without_counting_a_pause(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slept(seconds: float) -> None:
        clock.now += 50.0 if clock.now == 1000.0 else max(seconds, 0.1)

    monkeypatch.setattr(saving.time, "sleep", slept)
    job: Any = SimpleNamespace(
        batches=SimpleNamespace(steps_per_epoch=7),
        parameters=SimpleNamespace(distributed=SimpleNamespace(timeout_seconds=3.0)),
        board=SimpleNamespace(behind=lambda *_: None if clock.now > 1052 else 1),
    )
    saving.wait_for_lines(job, 14)
    job.board = SimpleNamespace(behind=lambda *_: 1)
    with pytest.raises(RunFailed, match="rank 1 has not noted step 14 within 3 s"):
        saving.wait_for_lines(job, 14)


@pytest.mark.timeout(300)  # two whole runs and the pauses of one
@pytest.mark.parametrize("words", [
    slow("distributed.strategy=allreduce"),
    slow("distributed.strategy={name: allreduce, algorithm: ring, transport: tcp}"),
    slow("distributed.strategy={name: allreduce, algorithm: ring, transport: gloo}"),
    slow("distributed.strategy=naive"),
    slow("distributed.strategy=ddp"),
    slow("distributed.strategy=fsdp"),
    slow("distributed.strategy=tensor"),
    slow("distributed.strategy=pipeline model.hidden_sizes=[16,16]"),
    slow("distributed.strategy=parameter_server"),
    slow("distributed.strategy=local_sgd"),
])  # fmt: skip
def test_a_run_that_is_paused_ends_in_the_same_bits(command: Any, words: str) -> None:
    options = [*SMALL, *words.split(" model.")[:1], *(f"model.{word}" for word in words.split(" model.")[1:])]
    options += [
        "training.epochs=40",
        "checkpoint.every_epochs=40",
        "distributed.world_size=2",
        "distributed.timeout_seconds=3",
    ]
    command.run("--run-id", "whole", *options)
    process = command.start_and_wait_for_step("paused", 1, *options)
    for seed in range(2):
        time.sleep(0.2)
        pause(process.pid, 5.0, seed)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert bits(Run(command.catalog / "paused")) == bits(Run(command.catalog / "whole"))


@pytest.mark.slow
def test_a_pause_longer_than_any_limit_of_gloo_that_once_was_ends_no_run(command: Any) -> None:
    options = [*SMALL, "training.epochs=40", "distributed.strategy=ddp", "distributed.timeout_seconds=2"]
    process = command.start_and_wait_for_step("r", 1, *options)
    pause(process.pid, 37.0, 0)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
