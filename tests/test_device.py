"""Which device the ranks compute on, what is refused, and memory that runs out."""

import os

import pytest
import torch

from lockstep import linux, parameters
from lockstep.engine import device
from lockstep.errors import RunFailed
from lockstep.files import read_json, read_json_lines
from lockstep.orchestration import plan
from training import bits, train


def chosen(monkeypatch, gpus, *words):
    monkeypatch.setattr(plan, "gpus", lambda: gpus)
    return plan.device(parameters.read(None, words))


def test_auto_takes_gpus_only_where_every_rank_has_one(monkeypatch):
    assert chosen(monkeypatch, 2, "distributed.device=auto") == "cuda"
    assert chosen(monkeypatch, 1, "distributed.device=auto") == "cpu"
    assert chosen(monkeypatch, 8, "distributed.device=auto", "distributed.strategy=allreduce") == "cuda"
    assert chosen(monkeypatch, 8) == "cpu"


def test_too_few_gpus_are_refused_in_words(monkeypatch):
    with pytest.raises(RunFailed, match=r"cuda with 2 ranks, one GPU each, and 1 GPUs are to be seen"):
        chosen(monkeypatch, 1, "distributed.device=cuda")


def test_gpus_are_counted_without_a_library(monkeypatch, tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    real = linux.Path
    monkeypatch.setattr(linux, "Path", lambda path: real(tmp_path) if path == "/dev" else real(path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert linux.gpus() == 3
    for visible, count in (("0", 1), ("0,2", 2), ("", 0), ("-1", 0), ("1,-1,2", 1), ("0,1,2,3", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert linux.gpus() == count, visible


def test_on_a_gpu_the_order_of_sums_is_asked_to_be_the_same_every_time(monkeypatch):
    """What is asked of torch; whether a GPU does so, only a GPU can show."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "so that it is put back")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    training = parameters.read(None, []).training
    try:
        device.choose({"device": "cpu"}, 0, training)
        assert not torch.are_deterministic_algorithms_enabled()
        device.choose({"device": "cuda"}, 0, training)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode("default")
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_memory_that_runs_out_is_told_with_what_to_change(server, tmp_path):
    with pytest.raises(
        RunFailed, match=r"memory ran out on rank 1.*Try a smaller training.micro_batch_size"
    ) as told:
        train(server, tmp_path, "model=own_models:faulty", "model.kind=allocate", "training.epochs=6")
    assert told.value.cause == "out of memory"


@pytest.mark.parametrize("strategy", ["ddp", "allreduce"])
def test_memory_that_runs_out_before_the_first_step_is_told_as_well(server, tmp_path, strategy):
    words = ("model=own_models:faulty", "model.kind=allocate at once", f"distributed.strategy={strategy}")
    with pytest.raises(
        RunFailed, match=r"memory ran out on rank 1.*Try a smaller training.micro_batch_size"
    ) as told:
        train(server, tmp_path, *words)
    assert told.value.cause == "out of memory"


def test_channels_last_is_the_same_training_and_the_processor_reports_no_device_memory(server, tmp_path):
    words = ("distributed.world_size=2", "training.precision=fp32")
    plain = train(server, tmp_path, *words)
    run = train(server, tmp_path, *words, "training.channels_last=true")
    assert bits(run) == bits(plain)  # no image among these inputs
    assert read_json(run.plan)["device"] == "cpu"
    assert read_json_lines(run.metrics_file(0))[-1]["peak_device_bytes"] is None


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ("data=own_data:images", "data.count=60", "model={name: resnet, stem: cifar, width: 4, norm: batch}",
             "training.micro_batch_size=1"),
            r"a batch normalisation was given a single sample.* on rank \d .*model.norm=group",
        ),
        (("model=own_models:reentrant",), r"ddp: on rank \d the gradient of a parameter came twice.*use_reentrant"),
    ],
)  # fmt: skip
def test_what_torch_says_in_its_own_terms_is_said_with_what_to_change(server, tmp_path, words, told):
    with pytest.raises(RunFailed, match=told):
        train(server, tmp_path, *words, "training.epochs=1")
