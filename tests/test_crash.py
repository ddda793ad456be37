"""Promise 3: whatever dies, at most the steps since the last checkpoint are lost, and the bits are the same."""

import json
import os
import random
import signal
import time

import pytest

from conftest import alive, descendants, rank_pids, wait_until
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.files import read_json, read_json_lines
from training import bits

JOB = ("data=synthetic", "data.num_samples=3001", "data.input_size=32", "training.global_batch_size=64")
LONG = (*JOB, "training.epochs=40", "checkpoint.every_steps=25")


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


def last_event(run, name):
    return [line for line in read_json_lines(run.events) if line["event"] == name][-1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Bits of the run that nobody disturbed, by world size."""
    from conftest import Command

    known = {}

    def of(ranks):
        if ranks not in known:
            command = Command(tmp_path_factory.mktemp("undisturbed"))
            command.run("--run-id", "whole", *LONG, f"distributed.world_size={ranks}")
            known[ranks] = bits(run_of(command, "whole"))
        return known[ranks]

    return of


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ctrl_c_then_resume_ends_in_the_same_bits(command, uninterrupted, ranks):
    process = command.start_and_wait_for_step("r", 100, *LONG, f"distributed.world_size={ranks}")
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the ranks get it as well
    output, _ = process.communicate(timeout=60)
    run = run_of(command, "r")
    assert process.returncode == 130, output
    assert time.monotonic() - began < 5
    assert status.of(run).word == "interrupted"
    assert status.of(run).cause == "SIGINT"
    ends = [read_json_lines(run.metrics_file(rank))[-1] for rank in range(ranks)]
    assert {end["kind"] for end in ends} == {"end"}
    assert len({end["step"] for end in ends}) == 1  # all stopped after the same step
    assert (run.checkpoints / f"step-{ends[0]['step']:08d}").is_dir()
    assert verify_seal(run) == []
    assert not run.live.exists()
    command.run("--resume", "r")
    assert status.of(run).word == "succeeded"
    assert bits(run) == uninterrupted(ranks)
    assert verify_seal(run) == []


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("victim", ["launcher", "rank", "server"])
def test_kill_9_at_a_random_moment_then_resume_ends_in_the_same_bits(command, uninterrupted, victim, ranks):
    step = random.randrange(2, 1000)
    process = command.start_and_wait_for_step("r", step, *LONG, f"distributed.world_size={ranks}")
    below = descendants(process.pid)
    pids = rank_pids(command.catalog, "r")
    targets = {"launcher": [process.pid], "rank": [random.choice(pids)], "server": set(below) - set(pids)}[
        victim
    ]
    for pid in targets:
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    run = run_of(command, "r")
    wait_until(lambda: not any(alive(pid) for pid in below), 5)  # nothing is left behind
    if victim == "launcher":
        assert status.of(run).word == "killed"
    else:
        assert process.returncode == 1, output
        assert status.of(run).word == "failed"
        assert status.of(run).cause == "signal"
        assert verify_seal(run) == []
    if victim == "rank":
        number = pids.index(targets[0])
        assert f"rank {number} was killed by SIGKILL" in output
        assert status.of(run).rank == number
    reached = max(line["step"] for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step")
    valid = [path for path in run.checkpoints.glob("step-*") if not verify_folder(path)]
    newest = max((int(path.name[5:]) for path in valid), default=0)
    assert (
        reached - newest <= 2 * 25
    )  # at most the steps since the last checkpoint, and the one being written
    command.run("--resume", "r")
    assert status.of(run).word == "succeeded"
    assert bits(run) == uninterrupted(ranks)
    results = read_json(run.results)
    assert (
        results["training"]["samples"]
        == results["training"]["epochs"] * read_json(run.plan)["splits"]["train"]
    )
    assert len(results["epochs"]) == results["training"]["epochs"]


def test_a_second_ctrl_c_ends_at_once_and_nothing_is_left(command):
    process = command.start_and_wait_for_step("r", 20, *LONG, "distributed.world_size=2")
    below = descendants(process.pid)
    for pid in rank_pids(command.catalog, "r"):
        os.kill(pid, signal.SIGSTOP)  # ranks that cannot stop by themselves
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert status.of(run_of(command, "r")).word == "interrupted"
    assert not any(alive(pid) for pid in below)


def test_sigterm_stops_in_order_and_is_told_apart(command):
    process = command.start_and_wait_for_step("r", 20, *LONG, "distributed.world_size=2")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 130
    found = status.of(run_of(command, "r"))
    assert (found.word, found.cause) == ("interrupted", "SIGTERM")


FAULTY = """
import os
import torch
from torch import nn

class Faulty(nn.Module):
    def __init__(self, inputs, outputs, kind, rank):
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        self.kind, self.rank, self.calls = kind, rank, 0
    def forward(self, x):
        self.calls += self.training
        if self.calls == 30 and torch.distributed.get_rank() == self.rank:
            if self.kind == "raise":
                raise ValueError("the culprit's own words")
            if self.kind == "segv":
                print("about to go", flush=True)
                os.kill(os.getpid(), 11)
            if self.kind == "exit":
                os._exit(7)
            if self.kind == "nan":
                return self.net(x) * float("nan")
            if self.kind == "hang":
                import time; time.sleep(600)
            if self.kind == "drift":
                with torch.no_grad():
                    self.net.bias += 1e-3
        return self.net(x)

def faulty(input_shape, num_classes, *, kind: str = "raise", rank: int = 1):
    return Faulty(input_shape[0], num_classes, kind, rank)
"""


@pytest.fixture
def faulty(command, tmp_path):
    """Run a model that misbehaves at its 30th forward pass on one rank."""
    (tmp_path / "faulty_model.py").write_text(FAULTY)

    def run(kind, *words, rank=1):
        return command.run(
            "--run-id", "r", *JOB, "training.epochs=4", "checkpoint.every_steps=10", "model=faulty_model:faulty",
            f"model.kind={kind}", f"model.rank={rank}", *words, status=1, cwd=tmp_path,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("rank", [0, 2])
def test_the_rank_that_raises_is_named_with_its_own_traceback(command, faulty, rank):
    output = faulty("raise", "distributed.world_size=3", rank=rank)
    assert f"rank {rank} raised ValueError: the culprit's own words" in output
    assert "faulty_model.py" in output
    assert "gloo" not in output
    found = status.of(run_of(command, "r"))
    assert (found.word, found.cause, found.rank) == ("failed", "exception", rank)


def test_a_rank_that_dies_of_a_signal_is_named_with_the_end_of_its_log(command, faulty):
    output = faulty("segv", "distributed.world_size=3")
    assert "rank 1 was killed by SIGSEGV" in output
    assert "Segmentation fault" in output  # what the process itself printed last, native code included
    assert status.of(run_of(command, "r")).rank == 1


def test_a_rank_that_exits_without_a_word_is_named(command, faulty):
    assert "rank 1 ended with exit status 7" in faulty("exit", "distributed.world_size=2")
    assert status.of(run_of(command, "r")).word == "failed"


def test_a_nan_stops_the_run_before_the_weights_are_touched(command, faulty):
    output = faulty("nan", "distributed.world_size=2", rank=0)
    assert "nan" in output
    assert "training.learning_rate" in output
    run = run_of(command, "r")
    assert status.of(run).cause == "not finite"
    from safetensors.numpy import load_file

    checkpoints = sorted(run.checkpoints.glob("step-*"))
    assert checkpoints
    for path in checkpoints:
        assert verify_folder(path) == []
        assert all(abs(v).max() < float("inf") for v in load_file(path / "model.safetensors").values())


def test_a_hang_is_reported_with_rank_and_step_within_the_timeout(command, faulty):
    began = time.monotonic()
    output = faulty("hang", "distributed.world_size=2", "distributed.timeout_seconds=3")
    assert time.monotonic() - began < 60
    assert "rank 1 is the one the others wait for" in output
    found = status.of(run_of(command, "r"))
    assert (found.word, found.cause, found.rank) == ("failed", "hang", 1)


def test_ranks_whose_weights_part_are_found_and_named(command, faulty):
    output = faulty("drift", "distributed.world_size=3", "training.digest_every=5", rank=2)
    assert "rank 2 parted" in output
    assert "net.bias" in output
    assert status.of(run_of(command, "r")).cause == "diverged"


def test_the_same_failing_run_does_not_restart_for_ever(command, faulty, tmp_path):
    faulty("raise", "distributed.world_size=2")
    command.run("--resume", "r", status=1, cwd=tmp_path)
    run = run_of(command, "r")
    assert status.of(run).attempt == 2
    assert json.loads((run.path / "run_log.json").read_text())["status"] == "FAIL"
