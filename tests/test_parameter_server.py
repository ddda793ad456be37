"""The parameter server: the single process where it is synchronous, its price shown where it is not."""

import contextlib
import os
import re
import signal
import threading
import time

import pytest

from conftest import alive, descendants, wait_until
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.errors import RunFailed
from lockstep.files import read_json, read_json_lines
from marks import quick_are, slow
from training import bits, largest_difference, results, train

SERVER = ("distributed.strategy=parameter_server",)
MODES = ("sync", "async", "ssp")


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(
        server, tmp_path_factory.mktemp("single"), "distributed.strategy=single", "distributed.world_size=1"
    )


@pytest.mark.parametrize(("ranks", "servers"), [slow(1, 1), (2, 3), slow(3, 1), (4, 2)])
def test_the_synchronous_mode_is_the_single_process(server, tmp_path, reference, ranks, servers):
    run = train(
        server,
        tmp_path,
        *SERVER,
        f"distributed.world_size={ranks}",
        f"distributed.strategy.servers={servers}",
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


@pytest.mark.parametrize("mode", [slow("async"), slow("ssp")])
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


@pytest.mark.parametrize("mode", quick_are(["ssp"], MODES))
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
    import torch

    from lockstep.strategies import _serving as serving
    from lockstep.strategies._slices import cut, trained
    from lockstep.strategies.base import Group
    from lockstep.transports.base import Label
    from lockstep.transports.queue import Queue

    class Nobody:
        def progress(self, least, most): ...
        def update(self, **fields): ...

    class Descent:
        """Gradient descent; torch's own would import its compiler first."""

        def __init__(self, parameters):
            self.param_groups = [{"params": parameters, "lr": 1.0}]

        @torch.no_grad()
        def step(self):
            (group,) = self.param_groups
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"])

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
    server.optimizer = Descent(server.parameters)
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


LONGER = (*SERVER, "training.epochs=32", "checkpoint.every_steps=20", "distributed.world_size=3")


@contextlib.contextmanager
def killing(catalog, name, step):
    """SIGKILL the process that writes the metrics file of that name once it has written the line of a step."""

    def wait_and_kill():
        wait_until(
            lambda: any(f'"step": {step},' in file.read_text() for file in catalog.glob(f"*/metrics/{name}"))
        )
        (file,) = catalog.glob(f"*/metrics/{name}")
        os.kill(
            next(line["pid"] for line in read_json_lines(file) if line["kind"] == "start"), signal.SIGKILL
        )

    killer = threading.Thread(target=wait_and_kill)
    killer.start()
    yield
    killer.join()


@pytest.mark.parametrize("mode", [slow(mode) for mode in MODES])
def test_a_killed_server_is_restarted_from_the_last_checkpoint(server, tmp_path, mode):
    words = (*LONGER, f"distributed.strategy.mode={mode}", "distributed.strategy.servers=2")
    with killing(tmp_path / "disturbed", "server-1.jsonl", 110):
        run = train(server, tmp_path / "disturbed", *words)
    warnings = [line["message"] for line in read_json_lines(run.events) if line["event"] == "warning"]
    assert any("server 1 was killed by SIGKILL" in message for message in warnings)
    numbers = [line["step"] for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step"]
    assert len(set(numbers)) == read_json(run.plan)["steps"]
    assert len(numbers) - len(set(numbers)) <= 2 * 20  # since the last checkpoint, and the one being written
    assert results(run)["training"]["samples"] == 32 * read_json(run.plan)["splits"]["train"]
    if mode == "sync":
        assert bits(run) == bits(train(server, tmp_path / "whole", *words))


def test_a_killed_worker_is_named_though_everybody_else_says_so_too(server, tmp_path):
    with (
        killing(tmp_path, "rank-1.jsonl", 50),
        pytest.raises(RunFailed, match="rank 1 was killed by SIGKILL") as found,
    ):
        train(server, tmp_path, *LONGER)
    assert (found.value.rank, found.value.server, found.value.cause) == (1, None, "signal")


@pytest.mark.slow
def test_a_server_that_dies_too_often_is_named_and_the_checkpoint_goes_on(server, tmp_path):
    words = (*LONGER, "distributed.strategy.restarts=0")
    with (
        killing(tmp_path / "disturbed", "server-0.jsonl", 110),
        pytest.raises(RunFailed, match="server 0 was killed by SIGKILL"),
    ):
        train(server, tmp_path / "disturbed", *words)
    last = max((tmp_path / "disturbed").glob("*/checkpoints/step-*"))
    assert int(last.name[5:]) >= 110 - 2 * 20
    rest, whole = train(server, tmp_path, *words, start=last), train(server, tmp_path, *words)
    assert bits(rest) == bits(whole)


JOB = (
    "data=synthetic", "data.num_samples=3001", "data.input_size=32", "training.global_batch_size=64",
    "training.epochs=500", "checkpoint.every_steps=100000", *SERVER,
)  # fmt: skip


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["async", pytest.param("ssp", marks=pytest.mark.slow)])
def test_ctrl_c_stops_workers_that_do_not_wait_after_the_same_step(command, mode):
    words = (f"distributed.strategy.mode={mode}", "distributed.world_size=3")
    process = command.start_and_wait_for_step("r", 60, *JOB, *words)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "mode"),
    [("server", "sync"), pytest.param("rank", "async", marks=pytest.mark.slow)],
)
def test_whoever_is_stopped_is_named_within_the_timeout(command, victim, mode):
    words = ("distributed.timeout_seconds=3", f"distributed.strategy.mode={mode}")
    process = command.start_and_wait_for_step("r", 20, *JOB, *words)
    below = descendants(process.pid)
    lines = read_json_lines(run_of(command, "r").metrics / f"{victim}-0.jsonl")
    os.kill(lines[0]["pid"], signal.SIGSTOP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert re.search(rf"{victim} 0.*(is the one the others wait for|within 3 s)", output), output
    assert status.of(run_of(command, "r")).cause == "hang"
    wait_until(lambda: not any(alive(pid) for pid in below), 5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_launcher_takes_workers_and_servers_with_it(command, mode):
    words = (f"distributed.strategy.mode={mode}", "distributed.strategy.servers=2")
    process = command.start_and_wait_for_step("r", 20, *JOB, *words)
    below = descendants(process.pid)
    assert len(below) >= 1 + 2 + 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not any(alive(pid) for pid in below), 5)
    assert status.of(run_of(command, "r")).word == "killed"
