"""The parameter server: the single process where it is synchronous, its price shown where it is not."""

import os
import re
import signal
import time

import pytest

from conftest import alive, descendants, wait_until
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.files import read_json, read_json_lines
from training import bits, largest_difference, results, train

SERVER = ("distributed.strategy=parameter_server",)
MODES = ("sync", "async", "ssp")


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(
        server, tmp_path_factory.mktemp("single"), "distributed.strategy=single", "distributed.world_size=1"
    )


@pytest.mark.parametrize(("ranks", "servers"), [(1, 1), (2, 3), (3, 1), (4, 2)])
def test_the_synchronous_mode_is_the_single_process(server, tmp_path, reference, ranks, servers):
    run = train(
        server, tmp_path, *SERVER, f"distributed.world_size={ranks}", f"distributed.strategy.servers={servers}"
    )
    assert largest_difference(run, reference) < 1e-10


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_it_works_over_any_transport_between_processes(server, tmp_path, reference, transport):
    run = train(server, tmp_path, *SERVER, f"distributed.strategy.transport={transport}")
    assert largest_difference(run, reference) < 1e-10


def test_clipping_sees_the_whole_gradient_though_no_server_does(server, tmp_path):
    words = ("training.max_grad_norm=0.1", "training.optimizer=sgd", "training.learning_rate=0.05")
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    run = train(server, tmp_path, *words, *SERVER, "distributed.strategy.servers=3")
    assert largest_difference(run, alone) < 1e-10
    norms = [
        [line["grad_norm"] for line in read_json_lines(each.metrics_file(0)) if line["kind"] == "step"]
        for each in (alone, run)
    ]
    assert norms[0] == pytest.approx(norms[1], abs=1e-10)


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_without_waiting_for_all_it_learns_digits_and_shows_the_price(server, tmp_path, mode):
    run = train(
        server, tmp_path, "data=digits", "model.hidden_sizes=[64]", "training.precision=fp32",
        "training.epochs=20", "training.global_batch_size=64", "training.learning_rate=0.006",
        "distributed.world_size=3", *SERVER, f"distributed.strategy.mode={mode}",
        "distributed.strategy.staleness=2", "checkpoint.every_epochs=5",
    )  # fmt: skip
    from lockstep.engine.evaluation import evaluate_run
    from lockstep.parameters import read

    assert evaluate_run(run, read(run.parameters, []))["final"]["test"]["accuracy"] >= 0.95
    served = results(run)["servers"][0]
    steps = read_json(run.plan)["steps"]
    assert served["updates"] == sum(served["staleness"].values()) == 3 * steps
    assert served["mean_staleness"] > 0
    if mode == "ssp":  # the others are at most two steps ahead and one behind, or the other way round
        assert max(map(int, served["staleness"])) <= 2 * (2 * 2 + 1)


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_a_worker_is_never_further_ahead_than_the_bound(server, tmp_path, mode):
    run = train(
        server, tmp_path, *SERVER, "distributed.world_size=3", f"distributed.strategy.mode={mode}",
        "distributed.strategy.staleness=1",
    )  # fmt: skip
    clocks, ahead = dict.fromkeys(range(3), 0), 0
    for line in read_json_lines(run.metrics / "server-0.jsonl"):
        if line["kind"] == "update":
            assert line["step"] == clocks[line["rank"]] + 1  # none twice, none left out
            ahead = max(ahead, line["step"] - 1 - min(clocks.values()))
            clocks[line["rank"]] = line["step"]
    assert set(clocks.values()) == {read_json(run.plan)["steps"]}
    assert mode == "async" or ahead <= 1


def test_the_weights_are_spread_evenly_and_the_record_says_how(server, tmp_path):
    run = train(server, tmp_path, *SERVER, "distributed.strategy.servers=3", "training.epochs=1")
    start = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "start")
    held = [each["bytes"] for each in start["strategy"]["servers"]]
    assert sum(held) == 8 * (12 * 16 + 16 + 16 * 5 + 5)
    assert max(held) - min(held) <= 8
    assert held == [each["bytes"] for each in results(run)["servers"]]


@pytest.mark.parametrize("mode", MODES)
def test_its_checkpoint_goes_on_under_any_strategy_and_number_of_servers(server, tmp_path, mode):
    half = train(
        server, tmp_path, *SERVER, f"distributed.strategy.mode={mode}", "distributed.strategy.servers=2",
        "training.epochs=1", "distributed.world_size=3",
    )  # fmt: skip
    last = max(half.checkpoints.glob("step-*"))
    assert verify_folder(last) == []
    alone = train(server, tmp_path, "distributed.strategy=single", "distributed.world_size=1", start=last)
    again = train(server, tmp_path, *SERVER, "distributed.strategy.servers=1", start=last)
    assert largest_difference(alone, again) < 1e-10


@pytest.mark.parametrize(
    ("step", "words"), [(1, None), (2, "step 2, and step 1 was expected"), (0, "step 0, and step 1")]
)
def test_a_gradient_of_another_step_is_refused(tmp_path, step, words):
    import threading

    import torch

    from lockstep.strategies import _serving as serving
    from lockstep.strategies._slices import cut, trained
    from lockstep.strategies.base import Group
    from lockstep.transports.base import Label
    from lockstep.transports.queue import Queue

    class Nobody:
        def progress(self, least, most): ...
        def update(self, **fields): ...

    module = torch.nn.Linear(3, 2)
    own = cut(trained(module), 1)[0]
    ends = [None, None]
    joining = [
        threading.Thread(target=lambda r=r: ends.__setitem__(r, Queue(Group(r, 2, tmp_path / "q", 5.0))))
        for r in range(2)
    ]
    for thread in joining:
        thread.start()
    for thread in joining:
        thread.join()
    worker = ends[0]
    server = serving.Serving(ends[1], 1, own, torch.zeros(8), None, Nobody())
    server.optimizer = torch.optim.SGD(server.parameters, lr=1.0)
    numbers = torch.tensor([serving.PUSH, step, 0.5, 1.0], dtype=torch.float64)
    worker.label = Label("command", 0, 0)
    worker.send(numbers, 1).wait()
    worker.label = Label("gradient", 0, step)
    worker.send(torch.ones(8 + 2), 1).wait()
    worker.label = Label("command", 0, 0)
    worker.send(torch.tensor([serving.LEAVE, 0, 0, 0], dtype=torch.float64), 1).wait()
    if words is None:
        server.serve()
        assert server.weights.tolist() == [-0.5] * 8
        return
    with pytest.raises(Exception, match=f"server 0: rank 0 sent the gradient of {words}"):
        server.serve()
    assert server.weights.tolist() == [0.0] * 8


JOB = (
    "data=synthetic", "data.num_samples=3001", "data.input_size=32", "training.global_batch_size=64",
    "training.epochs=8", "checkpoint.every_steps=25", "distributed.world_size=2", *SERVER,
)  # fmt: skip


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


def server_pid(run, number=0):
    lines = read_json_lines(run.metrics / f"server-{number}.jsonl")
    return [line["pid"] for line in lines if line["kind"] == "start"][-1]


def test_a_killed_server_is_restarted_and_the_bits_are_the_same(command):
    command.run("--run-id", "whole", *JOB)
    process = command.start_and_wait_for_step("r", 137, *JOB)
    below = descendants(process.pid)
    run = run_of(command, "r")
    os.kill(server_pid(run), signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "server 0 was killed by SIGKILL" in output
    assert bits(run) == bits(run_of(command, "whole"))
    assert status.of(run).word == "succeeded"
    assert verify_seal(run) == []
    assert not any(alive(pid) for pid in below)
    numbers = [line["step"] for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step"]
    repeated = len(numbers) - len(set(numbers))
    assert repeated <= 2 * 25  # the steps since the last checkpoint, and the one being written


def test_a_server_that_dies_for_good_is_named_and_the_run_resumes(command):
    process = command.start_and_wait_for_step("r", 60, *JOB, "distributed.strategy.restarts=0")
    below = descendants(process.pid)
    run = run_of(command, "r")
    os.kill(server_pid(run), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "server 0 was killed by SIGKILL" in output
    assert (status.of(run).word, status.of(run).cause) == ("failed", "signal")
    wait_until(lambda: not any(alive(pid) for pid in below), 5)
    command.run("--resume", "r")
    assert status.of(run).word == "succeeded"


@pytest.mark.parametrize("mode", ["async", "ssp"])
def test_ctrl_c_stops_workers_that_do_not_wait_after_the_same_step(command, mode):
    words = (f"distributed.strategy.mode={mode}", "checkpoint.every_steps=100000", "training.epochs=500")
    process = command.start_and_wait_for_step("r", 60, *JOB, *words, "distributed.world_size=3")
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert time.monotonic() - began < 20
    run = run_of(command, "r")
    ends = [read_json_lines(run.metrics_file(rank))[-1] for rank in range(3)]
    assert {end["kind"] for end in ends} == {"end"}
    assert len({end["step"] for end in ends}) == 1
    assert verify_seal(run) == []
    assert not run.live.exists()


def test_a_stopped_server_is_the_one_that_is_named(command):
    process = command.start_and_wait_for_step("r", 20, *JOB, "training.epochs=500", "distributed.timeout_seconds=3")
    below = descendants(process.pid)
    os.kill(server_pid(run_of(command, "r")), signal.SIGSTOP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert re.search(r"server 0.*(is the one the others wait for|within 3 s)", output), output
    assert status.of(run_of(command, "r")).cause == "hang"
    wait_until(lambda: not any(alive(pid) for pid in below), 5)
