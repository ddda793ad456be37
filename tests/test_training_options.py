"""Micro-batches and precisions: each is the plain training, or says by how much it is not."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lockstep.engine.activations import drop_activations
from lockstep.errors import RunFailed
from lockstep.files import read_json, read_json_lines
from marks import quick_are, slow
from training import bits, largest_difference, results, train

EXACT = [
    "distributed.strategy=ddp",
    "distributed.strategy={name: allreduce, bucket_mb: 0.0005}",
    "distributed.strategy=naive",
    "distributed.strategy=parameter_server",
]


def steps_of(run, rank=0):
    return [line for line in read_json_lines(run.metrics_file(rank)) if line["kind"] == "step"]


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    words = ("distributed.strategy=single", "distributed.world_size=1")
    return train(server, tmp_path_factory.mktemp("single"), *words)


@pytest.mark.parametrize("strategy", quick_are([EXACT[0], EXACT[1], EXACT[3]], EXACT))
@pytest.mark.parametrize("size", [slow(1), 3])
def test_micro_batches_change_no_maths_and_send_no_byte_more(server, tmp_path, reference, strategy, size):
    words = (strategy, "distributed.world_size=3")
    plain = train(server, tmp_path, *words)
    run = train(server, tmp_path, *words, f"training.micro_batch_size={size}")
    assert largest_difference(run, reference) < 1e-10
    assert [line["wire_bytes"] for line in steps_of(run)] == [line["wire_bytes"] for line in steps_of(plain)]
    for found, wanted in zip(steps_of(run), steps_of(plain), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-10)
        assert (found["correct"], found["samples"]) == (wanted["correct"], wanted["samples"])


def test_micro_batches_of_virtual_shards_give_the_same_bits_at_any_world_size(server, tmp_path):
    words = ("distributed.strategy={name: allreduce, reduction: invariant}", "training.precision=fp32")
    words = (*words, "training.micro_batch_size=2")
    digests = {bits(train(server, tmp_path, *words, f"distributed.world_size={ranks}")) for ranks in (1, 3)}
    assert len(digests) == 1


@pytest.mark.parametrize("strategy", [EXACT[0], slow(EXACT[1])])
def test_a_run_in_micro_batches_resumes_in_the_same_bits(server, tmp_path, strategy):
    words = (strategy, "distributed.world_size=3", "training.precision=fp32", "training.micro_batch_size=2")
    words = (*words, "checkpoint.every_steps=7", "checkpoint.keep=9")
    whole = train(server, tmp_path, *words)
    assert bits(train(server, tmp_path, *words, start=whole.checkpoints / "step-00000014")) == bits(whole)


LEARNABLE = ("data=digits", "model.hidden_sizes=[64]", "training.epochs=6", "training.learning_rate=0.01",
             "training.global_batch_size=64")  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [(EXACT[0], "bf16"), slow(EXACT[0], "fp16"), slow(EXACT[1], "bf16"), slow(EXACT[1], "fp16")],
)
def test_mixed_precision_learns_as_well_and_repeats_its_bits(server, tmp_path, precision, strategy):
    whole = train(server, tmp_path, *LEARNABLE, strategy, "training.precision=fp32")
    runs = [
        train(server, tmp_path, *LEARNABLE, strategy, f"training.precision={precision}") for _ in range(2)
    ]
    accuracies = [results(run)["epochs"][-1]["validation"]["accuracy"] for run in (whole, runs[0])]
    assert accuracies[1] >= accuracies[0] - 0.02 >= 0.9
    assert bits(runs[0]) == bits(runs[1]) != bits(whole)
    first = [steps_of(run)[0]["grad_norm"] for run in (runs[0], whole)]
    assert first[0] == pytest.approx(first[1], rel=0.02), "the norm is of the unscaled gradients"


def test_an_overflow_in_fp16_leaves_its_step_out_and_halves_the_scale_also_after_a_resume(server, tmp_path):
    words = ("distributed.strategy=ddp", "training.precision=fp16", "training.learning_rate=0.01")
    words = (*words, "checkpoint.every_steps=4", "checkpoint.keep=9", "training.digest_every=1")
    big = (*words, "model=own_models:loud", "training.global_batch_size=20")
    whole = train(server, tmp_path, *big)
    steps = steps_of(whole)
    assert steps[0]["skipped"] and steps[0]["loss_scale"] == 32768.0
    assert steps[0]["parameter_digests"] == read_json_lines(whole.metrics_file(0))[0]["parameter_digests"]
    kept = [line for line in steps if not line["skipped"]]
    assert kept and kept[0]["loss_scale"] < 32768.0
    for line in steps:
        assert (line["grad_norm"] > 0) != line["skipped"]
    state = read_json(whole.checkpoints / "step-00000004" / "state.json")
    assert state["loss_scale"]["value"] == steps[3]["loss_scale"]
    assert bits(train(server, tmp_path, *big, start=whole.checkpoints / "step-00000004")) == bits(whole)


def test_fp16_is_refused_where_nobody_could_agree_on_a_scale(server, tmp_path):
    with pytest.raises(
        RunFailed, match="fp16 needs its loss scaled and local_sgd does not; allowed with it: fp32"
    ):
        train(server, tmp_path, "distributed.strategy=local_sgd", "training.precision=fp16")


DEEP = ("model.hidden_sizes=[16, 16, 16]", "training.precision=fp32", "training.digest_every=1")


@pytest.mark.parametrize("strategy", [slow(EXACT[0]), EXACT[1], slow("distributed.strategy=single")])
def test_dropped_activations_are_computed_again_to_the_same_bits(server, tmp_path, strategy):
    words = (*DEEP, strategy, "model.dropout=0.2")
    words = (*words, "distributed.world_size=1") if strategy.endswith("single") else words
    plain = train(server, tmp_path, *words)
    run = train(server, tmp_path, *words, "training.activation_checkpointing=true")
    assert bits(run) == bits(plain)


def test_a_block_whose_activations_are_dropped_runs_twice_in_training_and_once_in_evaluation():
    module = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    assert drop_activations(module) == ["0", "1.1"]  # what holds weights, down to the last Sequential
    layers = [nn.Flatten(), *(each for _ in range(5) for each in (nn.Linear(4, 4), nn.ReLU()))]
    assert drop_activations(nn.Sequential(*layers)) == ["0 to 2", "3 to 6", "7 to 10"]
    counted = nn.Sequential(Counted(), nn.Linear(4, 2))
    drop_activations(counted)
    counted(torch.ones(3, 4)).sum().backward()
    assert counted[0].calls == 2
    counted.eval()
    counted(torch.ones(3, 4))
    assert counted[0].calls == 3
    with pytest.raises(
        RunFailed, match=r"has no blocks to do it for: allowed are models that are a Sequential"
    ):
        drop_activations(nn.Linear(2, 2))


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 4), 0

    def forward(self, values):
        self.calls += 1
        return torch.relu(self.inner(values))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXACT[:2])
def test_a_compiled_model_is_the_same_maths(server, tmp_path, reference, strategy):
    run = train(server, tmp_path, strategy, "training.compile=true", "distributed.timeout_seconds=110.0")
    assert largest_difference(run, reference) < 1e-10
    assert "compiled" in (run.logs / "rank-0.log").read_text()


@pytest.mark.parametrize("optimizer", ["adam", slow("{name: sgd, momentum: 0.0}")])
def test_the_average_of_the_weights_is_what_its_definition_says_and_survives_a_resume(
    server, tmp_path, optimizer
):
    words = ("distributed.world_size=2", f"training.optimizer={optimizer}", "checkpoint.every_steps=1")
    words = (*words, "checkpoint.keep=99", "training.epochs=2")
    run = train(server, tmp_path, *words, "training.ema_decay=0.75")
    assert bits_of_weights(run) == bits_of_weights(train(server, tmp_path, *words))
    wanted = None
    for path in sorted(run.checkpoints.glob("step-*")):
        weights = load_file(path / "model.safetensors")
        if wanted is None:
            wanted = weights
        else:
            wanted = {name: 0.75 * value + 0.25 * weights[name] for name, value in wanted.items()}
    slots = load_file(path / "optimizer.safetensors")
    for name, value in wanted.items():
        assert float((slots[f"{name}/ema"] - value).abs().max()) < 1e-12
    again = train(
        server, tmp_path, *words, "training.ema_decay=0.75", start=run.checkpoints / "step-00000005"
    )
    assert bits(again) == bits(run)


def bits_of_weights(run):
    return (max(run.checkpoints.glob("step-*")) / "model.safetensors").read_bytes()


def test_a_weight_that_nobody_uses_keeps_no_average_and_disturbs_no_optimizer(server, tmp_path):
    run = train(
        server, tmp_path, "model=own_models:odd", "training.ema_decay=0.9", "distributed.strategy=allreduce"
    )
    slots = load_file(max(run.checkpoints.glob("step-*")) / "optimizer.safetensors")
    assert "twice.weight/ema" in slots
    assert not any(name.startswith("never.") for name in slots)


def test_servers_keep_no_average(server, tmp_path):
    with pytest.raises(
        RunFailed, match="ema_decay: with parameter_server the weights are updated by servers"
    ):
        train(server, tmp_path, "distributed.strategy=parameter_server", "training.ema_decay=0.9")
