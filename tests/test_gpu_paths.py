"""Ranks on a device whose memory is not the host's, which every machine with a compiler can simulate.

What is shown: no strategy mixes the two, and the training is that of the processor. Not shown: NCCL, and speed.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lockstep.files import read_json
from lockstep.launchers import client
from lockstep.orchestration import plan
from simulated_gpu.build import build
from training import evaluate, largest_difference, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def gpu_server(tmp_path_factory):
    """A fork server whose ranks have a simulated GPU."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SIMULATED_GPU", str(build(tmp_path_factory.mktemp("device"))))
    patch.setattr(client, "RANK_MODULES", (*client.RANK_MODULES, "simulated_gpu.ranks"))
    patch.setattr(plan, "gpus", lambda: 8)
    with client.Server() as started:
        started.prepare("forkserver", Path(__file__).parent)
        yield started
    patch.undo()


STRATEGIES = {
    "single": ("distributed.world_size=1",),
    "ddp": (),
    "fsdp": (),
    "fsdp, hybrid": ("distributed.strategy={name: fsdp, sharding: hybrid}", "distributed.world_size=4"),
    "fsdp, offload": ("distributed.strategy={name: fsdp, cpu_offload: true}",),
    "tensor": (),
    "tensor and fsdp": ("distributed.strategy={name: tensor, data_parallel: 2}", "distributed.world_size=4"),
    "naive": (),
    "allreduce": ("distributed.strategy={name: allreduce, bucket_mb: 0.001}",),
    "allreduce, invariant": ("distributed.strategy={name: allreduce, reduction: invariant}",),
    "allreduce, int8": ("distributed.strategy={name: allreduce, compressor: int8}",),
    "parameter_server": (),
    "local_sgd": ("distributed.strategy={name: local_sgd, every: 3, outer: nesterov}",),
    "pipeline": (),
    "zero bubble": (
        "distributed.strategy={name: pipeline, schedule: zero_bubble_v}",
        "model.hidden_sizes=[16, 16, 16]",
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_on_a_gpu_is_that_of_the_processor(gpu_server, server, tmp_path, name):
    words = [word for word in STRATEGIES[name] if word.startswith("model.")]
    assert largest_difference(*trained_on_both(gpu_server, server, tmp_path, name, *words)) < 1e-9


def strategy_of(name):
    own = [word for word in STRATEGIES[name] if "strategy=" in word or "world_size" in word]
    return own if any("strategy=" in word for word in own) else [f"distributed.strategy={name}", *own]


def trained_on_both(gpu_server, server, tmp_path, name, *words):
    words = ("distributed.world_size=2", *strategy_of(name), *words)
    on_gpu = train(gpu_server, tmp_path, *words, "distributed.device=cuda")
    assert read_json(on_gpu.plan)["device"] == "cuda"
    return on_gpu, train(server, tmp_path, *words)


@pytest.mark.parametrize("name", STRATEGIES)
def test_language_models_with_dropout_are_trained_on_a_gpu_as_on_the_processor(
    gpu_server, server, tmp_path, name
):
    file = tmp_path / "text.txt"
    file.write_text("what is drawn on one device is drawn on the other. " * 8)
    words = (
        "data=text", f"data.path={file}", "data.context_length=12", "model=gpt", "model.dim=16", "model.heads=2",
        "model.depth=4", "model.dropout=0.1", "training.epochs=1", "training.micro_batch_size=4",
        "training.ema_decay=0.9" if name != "parameter_server" else "training.epochs=1",
    )  # fmt: skip
    assert largest_difference(*trained_on_both(gpu_server, server, tmp_path, name, *words)) < 1e-9


@pytest.mark.parametrize(
    "name", [name for name in STRATEGIES if "tensor" not in name and name != "zero bubble"]
)
def test_statistics_of_batches_are_shared_on_a_gpu_as_on_the_processor(gpu_server, server, tmp_path, name):
    words = (
        "data=own_data:images", "model={name: resnet, stem: cifar, width: 4, norm: batch}",
        "training.global_batch_size=21", "training.epochs=1",
    )  # fmt: skip
    assert largest_difference(*trained_on_both(gpu_server, server, tmp_path, name, *words)) < 1e-9


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "int8" not in name])
def test_a_checkpoint_of_the_processor_goes_on_on_a_gpu_and_back(gpu_server, server, tmp_path, name):
    words = ("distributed.world_size=2", *strategy_of(name), "model.hidden_sizes=[16, 16, 16]")
    whole = train(server, tmp_path, *words, "training.epochs=6")
    first = train(server, tmp_path, *words, "training.epochs=2")
    second = train(
        gpu_server, tmp_path, *words, "training.epochs=4", "distributed.device=cuda",
        start=max(first.checkpoints.glob("step-*")),
    )  # fmt: skip
    third = train(server, tmp_path, *words, "training.epochs=6", start=max(second.checkpoints.glob("step-*")))
    assert largest_difference(third, whole) < 1e-9


def test_the_evaluation_and_snapshots_of_gradients_are_the_same_from_a_gpu(gpu_server, server, tmp_path):
    words = (
        "distributed.strategy={name: allreduce, snapshot_steps: [2], snapshot_tensors: true, compressor: fp16}",
        "distributed.world_size=2",
    )
    on_gpu = train(gpu_server, tmp_path, *words, "distributed.device=cuda")
    plain = train(server, tmp_path, *words)
    found, wanted = evaluate(gpu_server, on_gpu), evaluate(server, plain)
    assert found["final"]["test"]["loss"] == pytest.approx(wanted["final"]["test"]["loss"], abs=1e-9)
    assert found["final"]["test"]["confusion"] == wanted["final"]["test"]["confusion"]
    for run in (on_gpu, plain):
        assert [*(run.path / "snapshots/step-00000002").glob("rank-*.safetensors")]
    mine, theirs = (
        load_file(run.path / "snapshots/step-00000002/rank-1.safetensors") for run in (on_gpu, plain)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-9, rtol=0) for name in mine)
    exported = torch.load(on_gpu.model, weights_only=True)
    assert exported


def test_activations_are_dropped_and_computed_again_on_a_gpu(gpu_server, server, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("what is dropped is computed again with the same draws. " * 8)
    words = (
        "data=text", f"data.path={file}", "data.context_length=12", "model=gpt", "model.dim=16", "model.heads=2",
        "model.depth=4", "model.dropout=0.1", "training.epochs=1", "training.activation_checkpointing=true",
    )  # fmt: skip
    for name in ("ddp", "fsdp", "tensor", "pipeline"):
        assert largest_difference(*trained_on_both(gpu_server, server, tmp_path, name, *words)) < 1e-9, name
