"""Continuing: in place where nothing changed, as a child where something did, and never by mistake."""

import os
import shutil
import signal

import pytest

from conftest import wait_until
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.cli import main
from lockstep.files import read_json, read_json_lines
from lockstep.linux import cores
from marks import slow
from training import bits, largest_difference, train

JOB = ("data=synthetic", "data.num_samples=500", "data.input_size=16", "training.global_batch_size=32")


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


@pytest.mark.slow
def test_resuming_a_run_that_succeeded_says_so_and_writes_nothing(command):
    command.run("--run-id", "r", *JOB, "training.epochs=1")
    before = {path: path.stat().st_mtime_ns for path in command.catalog.rglob("*")}
    output = command.run("--resume", "r")
    assert "succeeded already" in output
    assert {path: path.stat().st_mtime_ns for path in command.catalog.rglob("*")} == before


@pytest.mark.slow
def test_a_change_makes_a_child_that_starts_from_the_parents_checkpoint(command):
    command.run("--run-id", "parent", *JOB, "training.epochs=2")
    output = command.run(
        "--resume", "parent", "--run-id", "child", "training.epochs=4", "distributed.world_size=3"
    )
    assert "training.epochs: 2 -> 4" in output
    child, parent = run_of(command, "child"), run_of(command, "parent")
    created = events.read(child)[0]
    assert created["parent"]["run_id"] == "parent"
    assert created["parent"]["checkpoint"] == max(parent.checkpoints.iterdir()).name
    assert verify_folder(child.start) == []
    first = next(line for line in read_json_lines(child.metrics_file(0)) if line["kind"] == "step")
    assert first["step"] == read_json(parent.plan)["steps"] + 1
    shutil.rmtree(parent.path)
    assert verify_seal(child) == []  # the child's folder is whole without its parent


def test_a_run_in_two_parts_is_the_run_in_one(server, tmp_path):
    whole = train(server, tmp_path, "training.epochs=4")
    half = train(server, tmp_path, "training.epochs=2")
    rest = train(server, tmp_path, "training.epochs=4", start=max(half.checkpoints.iterdir()))
    assert bits(rest) == bits(whole)


@pytest.mark.parametrize(("before", "after"), [slow(1, 2), (2, 3), slow(3, 1), slow(4, 2)])
def test_a_checkpoint_forgets_by_how_many_ranks_it_was_made(server, tmp_path, before, after):
    whole = train(server, tmp_path, "training.epochs=2", f"distributed.world_size={before}")
    half = train(server, tmp_path, "training.epochs=1", f"distributed.world_size={before}")
    strategy = "single" if after == 1 else "ddp"
    rest = train(
        server, tmp_path, "training.epochs=2", f"distributed.world_size={after}",
        f"distributed.strategy={strategy}", start=max(half.checkpoints.iterdir()),
    )  # fmt: skip
    assert largest_difference(rest, whole) < 1e-10


def test_another_batch_size_goes_on_at_the_end_of_an_epoch(server, tmp_path):
    half = train(server, tmp_path, "training.epochs=1")
    rest = train(
        server,
        tmp_path,
        "training.epochs=2",
        "training.global_batch_size=10",
        start=max(half.checkpoints.iterdir()),
    )
    steps = [line["step"] for line in read_json_lines(rest.metrics_file(0)) if line["kind"] == "step"]
    assert steps == list(range(steps[0], read_json(rest.plan)["steps"] + 1))
    assert steps[0] == read_json(rest.plan)["steps_per_epoch"] + 1


@pytest.mark.slow
def test_what_cannot_follow_is_refused_with_nothing_written(command):
    command.run("--run-id", "r", *JOB, "training.epochs=1", "checkpoint.every_steps=2")
    shutil.rmtree(
        max(run_of(command, "r").checkpoints.iterdir())
    )  # the newest is now in the middle of the epoch
    before = sorted(command.catalog.iterdir())
    output = command.run("--resume", "r", "training.global_batch_size=16", status=2)
    assert "middle of an epoch" in output
    command.run("--run-id", "done", *JOB, "training.epochs=2")
    assert "Raise training.epochs" in command.run("--resume", "done", "training.learning_rate=0.1", status=2)
    assert sorted(path.name for path in command.catalog.iterdir()) == sorted(
        [p.name for p in before] + ["done"]
    )


def test_another_optimizer_starts_afresh_from_the_same_weights(server, tmp_path):
    half = train(server, tmp_path, "training.epochs=1")
    rest = train(
        server, tmp_path, "training.epochs=2", "training.optimizer=sgd", start=max(half.checkpoints.iterdir())
    )
    assert "starts afresh" in (rest.logs / "rank-0.log").read_text()


def test_a_run_that_is_held_by_a_process_is_not_resumed(server, tmp_path, capsys):
    run = train(server, tmp_path, "training.epochs=1")
    descriptor = status.hold(run)
    assert main(["run", "--catalog", str(tmp_path), "--resume", run.run_id]) == 2
    assert "is running" in capsys.readouterr().err
    status.release(run, descriptor)


@pytest.mark.slow
def test_a_running_run_is_neither_resumed_nor_started_twice(command):
    process = command.start_and_wait_for_step("r", 5, *JOB, "training.epochs=3000")
    assert status.of(run_of(command, "r")).word == "running"
    assert "is running" in command.run("--resume", "r", status=2)
    assert "exists already" in command.run("--run-id", "r", *JOB, status=2)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)


@pytest.mark.slow
def test_of_two_starters_of_one_id_one_wins(command):
    both = [command.start("--run-id", "r", *JOB, "training.epochs=1") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    assert verify_seal(run_of(command, "r")) == []


@pytest.mark.slow
def test_of_two_resumes_at_once_one_wins(command):
    process = command.start_and_wait_for_step("r", 5, *JOB, "training.epochs=60")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    both = [command.start("--resume", "r") for _ in range(2)]
    outputs = [process.communicate(timeout=90)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2] or (codes == [0, 0] and any("succeeded already" in o for o in outputs)), outputs
    assert verify_seal(run_of(command, "r")) == []


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_when_it_is_passed_over_and_not_at_the_end(command):
    """The attempt may be killed, and the checkpoint be replaced by then."""
    words = (*JOB, "training.epochs=3000", "checkpoint.every_epochs=1000", "checkpoint.every_steps=null")
    process = command.start_and_wait_for_step("r", 20, *words)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    run = run_of(command, "r")
    (newest,) = run.checkpoints.iterdir()
    with (newest / "optimizer.safetensors").open("r+b") as file:
        file.truncate(100)
    process = command.start("--resume", "r")
    said = f"passed over: checkpoint {newest.name} is damaged"
    wait_until(lambda: any(said in str(event.get("message")) for event in events.read(run)))
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert said in run.rank_log(0).read_text()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_passed_over(command):
    process = command.start_and_wait_for_step("r", 60, *JOB, "training.epochs=3000")
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    run = run_of(command, "r")
    newest, second = sorted(run.checkpoints.iterdir(), reverse=True)[:2]
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = command.run(
        "--resume", "r", "--run-id", "child", f"training.epochs={int(second.name[5:]) // 11 + 2}"
    )  # a child, to end soon
    assert events.read(run_of(command, "child"))[0]["parent"]["checkpoint"] == second.name
    process = command.start("--resume", "r")
    metrics = run.metrics / "rank-0.attempt-2.jsonl"
    wait_until(lambda: metrics.exists() and '"kind": "step"' in metrics.read_text())
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert f"passed over: checkpoint {newest.name} is damaged" in output
    assert "model.safetensors" in output


@pytest.mark.slow
def test_data_that_changed_under_a_run_is_refused(command):
    process = command.start_and_wait_for_step("r", 5, *JOB, "training.epochs=3000")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    file = run_of(command, "r").data / "train.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)
    assert "train.safetensors is not what was prepared" in command.run("--resume", "r", status=1)


@pytest.mark.slow
def test_a_store_that_lost_or_damaged_its_copy_is_mended(command):
    command.run("--run-id", "a", *JOB, "training.epochs=1")
    stored = [path for path in (command.catalog / ".store").iterdir() if path.is_file()]
    for path in stored:
        path.unlink()
        path.write_bytes(b"rubbish")
    command.run("--run-id", "b", *JOB, "training.epochs=1")
    a, b = (read_json(command.catalog / name / "data" / "data.json") for name in "ab")
    assert a["files"] == b["files"]


@pytest.mark.slow
def test_the_thread_count_is_recorded_and_kept_on_resume(command):
    threads = max(cores() // 2, 1) + 1  # what nobody would choose for two ranks
    command.run("--run-id", "r", *JOB, "training.epochs=1", f"distributed.threads_per_rank={threads}")
    command.run(
        "--resume", "r", "--run-id", "child", "training.epochs=2", "distributed.threads_per_rank=null"
    )
    for name in ("r", "child"):
        run = run_of(command, name)
        assert read_json(run.plan)["threads_per_rank"] == threads
        assert [
            line["threads"] for line in read_json_lines(run.metrics_file(1)) if line["kind"] == "start"
        ] == [threads]


@pytest.mark.slow
def test_a_change_to_a_run_that_left_no_checkpoint_begins_again_and_says_so(command):
    process = command.start_and_wait_for_step(
        "r", 5, *JOB, "training.epochs=60", "checkpoint.every_epochs=50"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    output = command.run("--resume", "r", "--run-id", "child", "training.epochs=2")
    assert "no valid checkpoint" in output
    assert events.read(run_of(command, "child"))[0]["parent"]["run_id"] == "r"


def test_a_schedule_that_is_stretched_says_where_the_learning_rate_goes_on(server, tmp_path):
    words = ("training.schedule=cosine", "distributed.strategy=single", "distributed.world_size=1")
    parent = train(server, tmp_path, *words, "training.epochs=2")
    start = max(parent.checkpoints.iterdir())
    longer = train(server, tmp_path, *words, "training.epochs=4", start=start)
    (note,) = [event["message"] for event in events.read(longer) if event["event"] == "warning"]
    first = next(line for line in read_json_lines(longer.metrics_file(0)) if line["kind"] == "step")
    assert f"was 0 at step 16 and goes on with {first['learning_rate']:.3g}" in note
    assert first["learning_rate"] > 0.004 and "now ends at step 32" in note
    start_line = next(line for line in read_json_lines(longer.metrics_file(0)) if line["kind"] == "start")
    assert start_line["exact"] is True
    constant = [word for word in words if "cosine" not in word]
    same = train(server, tmp_path, *constant, "training.epochs=1")
    start = max(same.checkpoints.iterdir())
    more = train(server, tmp_path, *constant, "training.epochs=2", start=start)
    assert not [event for event in events.read(more) if event["event"] == "warning"]


def test_a_ranks_log_says_what_it_did(server, tmp_path):
    run = train(server, tmp_path, "training.epochs=2", "distributed.strategy=allreduce")
    steps = read_json(run.plan)["steps"]
    for rank in (0, 1):
        said = [line.partition(" UTC  ")[2] for line in run.rank_log(rank).read_text().splitlines()]
        assert said[0].startswith(f"rank {rank} of 2 (allreduce) begins after step 0: attempt 1, process ")
        assert "device cpu, 1 thread, torch" in said[0]
        epochs = [line for line in said if line.startswith("epoch ")]
        assert len(epochs) == 2 and "train loss 1." in epochs[0] and "validation loss" in epochs[1]
        assert said[-1].startswith(f"ended after step {steps}: training is done")
        saved = f"saved the checkpoint of step {steps}"
        assert (saved in said) == (rank == 0)
