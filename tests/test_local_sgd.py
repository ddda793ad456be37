"""Local SGD: each rank by itself between two averages, one model where it counts."""

import pytest
import torch

from lockstep.files import read_json_lines
from marks import slow
from training import bits, final_state, largest_difference, results, train

LOCAL = ("distributed.strategy=local_sgd", "training.digest_every=1")
PLAIN_SGD = ("training.optimizer={name: sgd, momentum: 0.0}", "training.learning_rate=0.1")


@pytest.mark.parametrize("ranks", [slow(1), 2, 3, slow(4)])
def test_sgd_without_momentum_that_averages_at_every_step_is_the_single_process(server, tmp_path, ranks):
    alone = train(server, tmp_path, *PLAIN_SGD, "distributed.strategy=single", "distributed.world_size=1")
    run = train(
        server,
        tmp_path,
        *LOCAL,
        *PLAIN_SGD,
        f"distributed.world_size={ranks}",
        "distributed.strategy.every=1",
    )
    assert largest_difference(run, alone) < 1e-10


def test_an_outer_step_of_rate_one_without_momentum_is_the_average(server, tmp_path):
    words = (*LOCAL, "distributed.world_size=3", "distributed.strategy.every=4")
    nesterov = ("distributed.strategy.outer=nesterov", "distributed.strategy.outer_learning_rate=1.0")
    plain = train(server, tmp_path, *words)
    outer = train(server, tmp_path, *words, *nesterov, "distributed.strategy.outer_momentum=0.0")
    assert largest_difference(plain, outer) < 1e-12


DIGITS = ("data=digits", "model.hidden_sizes=[64]", "training.precision=fp32", "training.epochs=15")


@pytest.mark.parametrize("outer", ["average", slow("nesterov")])
def test_averaging_every_eight_steps_learns_digits(server, tmp_path, outer):
    run = train(
        server, tmp_path, *DIGITS, "training.global_batch_size=64", "training.learning_rate=0.003",
        "distributed.strategy=local_sgd", "distributed.strategy.every=8", f"distributed.strategy.outer={outer}",
    )  # fmt: skip
    assert results(run)["epochs"][-1]["validation"]["accuracy"] >= 0.95
    lines = [line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step"]
    assert {line["step"] % 8 for line in lines if line["wire_bytes"]} == {0}  # silent in between


@pytest.mark.parametrize("outer", [slow("average"), "nesterov"])
@pytest.mark.parametrize("ranks", [slow(2), 3])
def test_a_run_in_two_parts_is_the_run_in_one(server, tmp_path, outer, ranks):
    words = (*LOCAL, f"distributed.strategy.outer={outer}", f"distributed.world_size={ranks}")
    words = (*words, "distributed.strategy.every=5", "checkpoint.every_steps=6", "checkpoint.keep=9")
    whole = train(server, tmp_path, *words)
    middle = whole.checkpoints / "step-00000012"  # between two averages, had no checkpoint been due
    rest = train(server, tmp_path, *words, start=middle)
    assert bits(rest) == bits(whole)


def test_its_checkpoint_goes_on_under_another_strategy_and_back(server, tmp_path):
    words = (
        "distributed.world_size=3",
        "distributed.strategy.every=5",
        "distributed.strategy.outer=nesterov",
    )
    half = train(server, tmp_path, *LOCAL, *words, "training.epochs=1")
    last = max(half.checkpoints.glob("step-*"))
    assert (last / "strategy.safetensors").exists()
    alone = train(server, tmp_path, "distributed.strategy=single", "distributed.world_size=1", start=last)
    ddp = train(server, tmp_path, "distributed.world_size=2", start=last)
    assert largest_difference(alone, ddp) < 1e-10
    again = train(
        server, tmp_path, *LOCAL, *words, "training.epochs=4", start=max(ddp.checkpoints.glob("step-*"))
    )
    assert all(torch.isfinite(torch.from_numpy(v)).all() for v in final_state(again).values())


def test_weights_that_differ_between_two_averages_are_no_alarm(server, tmp_path):
    run = train(server, tmp_path, *LOCAL, "distributed.world_size=2", "distributed.strategy.every=4")
    prints = [
        {
            line["step"]: line["parameter_digests"]
            for line in read_json_lines(run.metrics_file(rank))
            if line["kind"] == "step"
        }
        for rank in range(2)
    ]
    same = {step for step in prints[0] if prints[0][step] == prints[1][step]}
    assert same == {step for step in prints[0] if step % 4 == 0}


@pytest.mark.slow
def test_ctrl_c_stops_all_ranks_at_an_average(command):
    import os
    import signal

    from lockstep.catalog.run import Run
    from lockstep.catalog.seal import verify_seal

    process = command.start_and_wait_for_step(
        "r", 30, "data=synthetic", "data.num_samples=3001", "training.epochs=500", "distributed.world_size=3",
        "distributed.strategy={name: local_sgd, every: 7}", "checkpoint.every_epochs=1000",
    )  # fmt: skip
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    run = Run((command.catalog / "r").resolve())
    ends = [read_json_lines(run.metrics_file(rank))[-1] for rank in range(3)]
    assert {end["kind"] for end in ends} == {"end"}
    assert {end["step"] % 7 for end in ends} == {0}
    assert len({end["step"] for end in ends}) == 1
    assert verify_seal(run) == []
