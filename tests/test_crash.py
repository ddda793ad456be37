"""Promise 3: whatever dies, at most the steps since the last checkpoint are lost, and the bits are the same."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from conftest import ROOT, alive, descendants, rank_pids, wait_until
from lockstep import parameters
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.errors import RunFailed
from lockstep.files import read_json, read_json_lines
from marks import slow
from training import bits, run_of_parameters, train

JOB = ("data=synthetic", "data.num_samples=3001", "data.input_size=32", "training.global_batch_size=64")
LONG = (*JOB, "training.epochs=8", "checkpoint.every_steps=25")


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


def last_event(run, name):
    return [line for line in read_json_lines(run.events) if line["event"] == name][-1]


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """Bits of the run that nobody disturbed, by world size; by the pipeline's own steps, without the command around."""
    known = {}

    def of(ranks):
        if ranks not in known:
            words = [*LONG, f"distributed.world_size={ranks}"]
            wanted = parameters.read(ROOT / "parameters.yaml", words)
            known[ranks] = bits(run_of_parameters(server, tmp_path_factory.mktemp("undisturbed"), wanted))
        return known[ranks]

    return of


@pytest.mark.parametrize("ranks", [2, slow(3), slow(4)])
def test_ctrl_c_then_resume_ends_in_the_same_bits(command, uninterrupted, ranks):
    process = command.start_and_wait_for_step("r", 100, *LONG, f"distributed.world_size={ranks}")
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the ranks get it as well
    output, _ = process.communicate(timeout=60)
    run = run_of(command, "r")
    assert process.returncode == 130, output
    assert time.monotonic() - began < 20
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


@pytest.mark.parametrize("ranks", [2, slow(3), slow(4)])
@pytest.mark.parametrize("victim", [slow("launcher"), "rank", slow("server")])
def test_kill_9_at_a_random_moment_then_resume_ends_in_the_same_bits(command, uninterrupted, victim, ranks):
    step = random.randrange(2, 200)
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


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_nothing_is_left(command):
    process = command.start_and_wait_for_step("r", 20, *LONG, "distributed.world_size=2")
    below = descendants(process.pid)
    for pid in rank_pids(command.catalog, "r"):
        os.kill(pid, signal.SIGSTOP)  # ranks that cannot stop by themselves
    os.kill(process.pid, signal.SIGINT)
    while "stopping after this step" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert status.of(run_of(command, "r")).word == "interrupted"
    assert not any(alive(pid) for pid in below)


@pytest.mark.slow
def test_sigterm_stops_in_order_and_is_told_apart(command):
    process = command.start_and_wait_for_step("r", 20, *LONG, "distributed.world_size=2")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 130
    found = status.of(run_of(command, "r"))
    assert (found.word, found.cause) == ("interrupted", "SIGTERM")


@pytest.mark.slow
def test_kill_9_of_the_launcher_takes_spawned_ranks_with_it_while_they_import_torch(command):
    process = command.start(
        "--run-id", "r", *JOB, "distributed.start_method=spawn", "distributed.world_size=2"
    )

    def spawned():
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(process.pid)}
        return [pid for pid, line in lines.items() if alive(pid) and b"spawn_main" in line.read_bytes()]

    wait_until(lambda: len(spawned()) >= 2)
    below = descendants(process.pid)
    time.sleep(0.3)  # into the import, which takes seconds
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    time.sleep(0.5)
    assert not [pid for pid in below if alive(pid)]


def test_no_checkpoint_is_committed_that_is_ahead_of_the_metrics_of_any_rank(server, tmp_path):
    with pytest.raises(RunFailed, match="rank 1 was killed by SIGKILL"):
        train(
            server, tmp_path, *JOB, "training.epochs=1", "checkpoint.every_steps=4", "distributed.world_size=2",
            "distributed.strategy=own_strategies:DiesBeforeItsLine",
        )  # fmt: skip
    (run,) = [Run(path) for path in tmp_path.iterdir() if path.name.startswith("run-")]
    assert [line["step"] for line in read_json_lines(run.metrics_file(1)) if line["kind"] == "step"][-1] == 7
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000004"]


@pytest.fixture
def faulty(server, tmp_path):
    """Train a model that misbehaves at its 30th forward pass on one rank; the error that says so, and the run."""

    def run(kind, *words, rank=1):
        with pytest.raises(RunFailed) as caught:
            train(
                server, tmp_path, *JOB, "training.epochs=4", "checkpoint.every_steps=10", "model=own_models:faulty",
                f"model.kind={kind}", f"model.rank={rank}", *words,
            )  # fmt: skip
        return caught.value, Run(max(tmp_path.glob("run-*")))

    return run


@pytest.mark.parametrize("rank", [0, 2])
def test_the_rank_that_raises_is_named_with_its_own_traceback(faulty, rank):
    error, _ = faulty("raise", "distributed.world_size=3", rank=rank)
    assert f"rank {rank} raised ValueError: the culprit's own words" in str(error)
    assert "own_models.py" in str(error)
    assert "gloo" not in str(error)
    assert (error.cause, error.rank) == ("exception", rank)


def test_a_rank_that_dies_of_a_signal_is_named_with_the_end_of_its_log(faulty):
    error, _ = faulty("segv", "distributed.world_size=3")
    assert "rank 1 was killed by SIGSEGV" in str(error)
    assert "Segmentation fault" in str(error)  # what the process itself printed last, native code included
    assert (error.cause, error.rank) == ("signal", 1)


@pytest.mark.parametrize(("kind", "exit_status"), [("exit", 7), ("exit well", 0)])
def test_a_rank_that_exits_without_a_word_is_named(faulty, kind, exit_status):
    error, _ = faulty(kind, "distributed.world_size=3")
    assert f"rank 1 ended with exit status {exit_status} after step 29" in str(error)
    assert error.rank == 1


def test_a_nan_stops_the_run_before_the_weights_are_touched(faulty):
    error, run = faulty("nan", "distributed.world_size=2", rank=0)
    assert "nan" in str(error)
    assert "training.learning_rate" in str(error)
    assert error.cause == "not finite"
    checkpoints = sorted(run.checkpoints.glob("step-*"))
    assert checkpoints
    for path in checkpoints:
        assert verify_folder(path) == []
        assert all(abs(v).max() < float("inf") for v in load_file(path / "model.safetensors").values())


def test_a_hang_is_reported_with_rank_and_step_within_the_timeout(faulty):
    error, _ = faulty("hang", "distributed.world_size=2", "distributed.timeout_seconds=3")
    assert "rank 1 is the one the others wait for" in str(error)
    assert re.search(r"rank 1: step \d+, compute", str(error))
    assert (error.cause, error.rank) == ("hang", 1)
    assert "own_models.py" in str(error)  # where it stands


def test_ranks_whose_weights_part_are_found_and_named(faulty):
    error, _ = faulty("drift", "distributed.world_size=3", "training.digest_every=5", rank=2)
    assert "rank 2 parted" in str(error)
    assert "net.bias" in str(error)
    assert error.cause == "diverged"


@pytest.mark.slow
def test_a_failed_run_says_so_in_console_status_and_logs_and_can_be_tried_again(command, tmp_path):
    shutil.copy(Path(__file__).with_name("own_models.py"), tmp_path)
    words = (*JOB, "training.epochs=4", "model=own_models:faulty")
    output = command.run("--run-id", "r", *words, status=1, cwd=tmp_path)
    assert "rank 1 raised ValueError: the culprit's own words" in output
    assert "--resume r" in output
    run = run_of(command, "r")
    found = status.of(run)
    assert (found.word, found.cause, found.rank, found.attempt) == ("failed", "exception", 1, 1)
    command.run("--resume", "r", status=1, cwd=tmp_path)  # it fails again, and is not tried for ever
    assert status.of(run).attempt == 2
    assert read_json(run.run_log)["status"] == "FAIL"
    assert verify_seal(run) == []
