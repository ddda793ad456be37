"""`lockstep collectives run`: every algorithm on real processes gives the serial result at each step."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from conftest import descendants, needs_torch
from lockstep import cli
from lockstep.cli import collectives_run
from lockstep.errors import RunFailed
from lockstep.launchers import gather

pytestmark = needs_torch
TARGET = "lockstep.engine.simulation:main"
ALGORITHMS = ("ring", "tree", "halving_doubling", "direct", "hierarchical", "parameter_server")


def order(algorithm, ranks, **changes):
    return {
        "algorithm": algorithm, "world_size": ranks, "num_steps": 6, "parameter_dim": 40, "shard_size": 16,
        "transport": "shm", "seed": 42, "timeout_seconds": 30.0, "ranks_per_machine": None,
    } | changes  # fmt: skip


def simulated(server, wanted):
    processes = wanted["world_size"] + (wanted["algorithm"] == "parameter_server")
    seen = gather.gather(TARGET, wanted, processes, 60, server)
    return collectives_run.judged(seen[: wanted["world_size"]])


@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_step_is_the_serial_one(server, algorithm, ranks):
    steps = simulated(server, order(algorithm, ranks))
    assert [step["step"] for step in steps] == list(range(1, 7))
    assert all(step["ok"] for step in steps), steps
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]


def test_ranks_of_several_machines_go_through_their_hierarchy(server):
    alike = [simulated(server, order("hierarchical", 5, ranks_per_machine=size)) for size in (2, None)]
    for steps in alike:
        assert all(step["ok"] for step in steps), steps
    assert alike[0][0]["wire_bytes"] != alike[1][0]["wire_bytes"]


def test_a_rank_that_dies_is_told_with_the_step_that_it_died_in(server, monkeypatch):
    wanted = order("ring", 3, num_steps=100_000, transport="tcp")
    found = []

    def kill_one():
        ranks = [pid for pid in descendants(os.getpid()) if _is_simulating(pid)]
        found.extend(ranks)
        os.kill(ranks[-1], signal.SIGKILL)

    timer = threading.Timer(1.5, kill_one)
    timer.start()
    with pytest.raises(RunFailed) as told:
        gather.gather(TARGET, wanted, 3, 60, server)
    timer.join()
    assert len(found) == 3
    step = re.search(r"all_reduce ring, bucket 0, step ([0-9]+)", str(told.value))
    assert step and int(step[1]) > 0, told.value


@pytest.mark.parametrize("algorithm", ["ring", "parameter_server"])
@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_over_every_transport_between_processes(server, algorithm, transport):
    assert all(step["ok"] for step in simulated(server, order(algorithm, 3, transport=transport)))


@pytest.mark.parametrize("algorithm", ["ring", "parameter_server"])
def test_fewer_weights_than_ranks_and_one_row_each(server, algorithm):
    assert all(step["ok"] for step in simulated(server, order(algorithm, 4, parameter_dim=1, shard_size=1)))


def test_the_command_prints_a_row_for_each_step_and_leaves_nothing_behind():
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", "collectives", "run", "--algorithm", "parameter_server",
         "--world-size", "4", "--num-steps", "6", "--parameter-dim", "40", "--shard-size", "16"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == 1 + 6 + 1
    assert all(row.endswith("ok") for row in rows[1:7])
    assert "each of 6 steps is the serial one" in rows[7]
    assert not [pid for pid in descendants(os.getpid()) if "collectives" in _command(pid)]


def _is_simulating(pid):
    """A rank of the server: it listens, or is connected, by TCP."""
    links = [os.path.realpath(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    return sum("socket:" in link for link in links) >= 2 and not any(
        "pytest" in word for word in [_command(pid)]
    )


def _command(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode()


def seen(difference=0.0, weights=(7, 7)):
    line = {"step": 1, "loss": 0.5, "difference": difference, "seconds": 0.1, "wire_bytes": 3}
    return [[line | {"weights": value}] for value in weights]


@pytest.mark.parametrize(
    ("found", "status", "words"),
    [
        (seen(), 0, "same bits on every rank"),
        (seen(difference=1e-9), 1, "WRONG"),
        (seen(difference=float("nan")), 1, "WRONG"),
        (seen(weights=(7, 8)), 1, "RANKS DIFFER"),
    ],
)
def test_a_step_that_is_not_the_serial_one_makes_it_fail(monkeypatch, capsys, found, status, words):
    monkeypatch.setattr(gather, "gather", lambda *_: found)
    command = ["collectives", "run", "--algorithm", "ring", "--world-size", "2", "--num-steps", "1"]
    assert cli.main(command) == status
    assert words in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == status
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] == (status == 0)


def test_a_process_that_fails_is_told_with_its_words(server):
    with pytest.raises(RunFailed, match="transports has no carrier pigeon"):
        gather.gather(TARGET, order("ring", 2, transport="carrier pigeon"), 2, 30, server)
