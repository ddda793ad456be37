"""The memory forecast: what was foretold stands beside what was measured, and what cannot fit is not started."""

import pytest
import torch

from lockstep.engine import forecast as engine_forecast
from lockstep.errors import RunFailed
from lockstep.files import read_json
from lockstep.orchestration import forecast
from training import results, train

KINDS = ("parameters", "gradients", "optimizer")
BIG = ("model.hidden_sizes=[64, 64]", "training.epochs=1")


WHOLE = ["single", "ddp", "allreduce", "naive", "local_sgd", "parameter_server"]  # on every rank


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        *((strategy, "adam") for strategy in WHOLE),
        *((strategy, "adam") for strategy in ("fsdp", "tensor", "pipeline")),
        ("ddp", "{name: sgd, momentum: 0.9}"),
        ("ddp", "{name: sgd, momentum: 0.0}"),
    ],
)
def test_weights_gradients_and_optimizer_state_are_foretold_within_15_percent(
    server, tmp_path, strategy, optimizer
):
    ranks = 1 if strategy == "single" else 2
    run = train(
        server, tmp_path, *BIG, f"distributed.strategy={strategy}", f"distributed.world_size={ranks}",
        f"training.optimizer={optimizer}",
    )  # fmt: skip
    found = results(run)["memory"]
    assert len(found) == ranks
    for rank in found:
        for kind in KINDS:
            foretold, measured = rank["predicted_bytes"][kind], rank["measured_bytes"][kind]
            assert abs(foretold - measured) <= 0.15 * measured, (kind, foretold, measured)
    whole = 8 * (12 * 64 + 64 + 64 * 64 + 64 + 64 * 5 + 5)
    held = [rank["predicted_bytes"]["parameters"] for rank in found]
    assert held == [whole] * ranks if strategy in WHOLE else whole <= sum(held) < 1.1 * whole


def test_the_average_of_the_weights_is_foretold_as_well(server, tmp_path):
    run = train(server, tmp_path, *BIG, "training.ema_decay=0.9")
    for rank in results(run)["memory"]:
        assert abs(rank["predicted_bytes"]["optimizer"] / rank["measured_bytes"]["optimizer"] - 1) < 0.01


def test_what_the_passes_need_is_measured_and_falls_with_micro_batches_and_dropped_activations(
    server, tmp_path
):
    def passes(*words):
        words = (
            f"model.hidden_sizes={[64] * 16}",
            "training.global_batch_size=140",
            *words,
        )
        return read_json(train(server, tmp_path, *BIG[1:], *words).plan)["memory"]["ranks"][0]["activations"]

    whole = passes()
    assert whole > 70 * 16 * 64 * 8  # an activation of fp64 for each layer, which the backward pass needs
    assert passes("training.micro_batch_size=7") < whole / 1.5
    assert passes("training.activation_checkpointing=true") < 0.8 * whole


def test_fakes_and_tensors_measure_the_same(server, tmp_path, monkeypatch):
    run = train(server, tmp_path, *BIG)
    seen = {}
    for limit in (1e12, 0):
        monkeypatch.setattr(engine_forecast, "LARGE_BYTES", limit)
        try:
            found = engine_forecast.forecast(run)
        finally:
            torch.set_default_dtype(torch.float32)  # a process of its own has no need of that
        seen[found["activations_measured_on"]] = found["ranks"][0]["activations"]
    assert seen["fakes"] == seen["tensors"] > 0


def test_a_model_that_only_works_on_real_data_is_trained_without_a_forecast(server, tmp_path):
    run = train(server, tmp_path, "model=own_models:picky", "training.epochs=1")
    assert "picky about" in read_json(run.plan)["memory"]["absent"]
    assert results(run)["memory"][0]["predicted_bytes"] is None
    assert results(run)["memory"][0]["measured_bytes"]["parameters"] > 0


def test_what_cannot_fit_is_refused_before_any_rank_is_started(server, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "available_bytes", lambda: 1_000_000)
    with pytest.raises(
        RunFailed, match=r"the 2 ranks need about .* and 1 MB are free: .*weights.*Try fewer ranks"
    ) as told:
        train(server, tmp_path, *BIG)
    assert told.value.cause == "out of memory"
    assert not list(tmp_path.glob("*/metrics/rank-*.jsonl"))


def test_what_cannot_fit_on_a_gpu_is_refused_by_that_gpus_memory_and_not_the_hosts():
    rank = {"parameters": 400, "gradients": 400, "optimizer": 800, "activations": 300, "process": 100}
    found = {"ranks": [rank, rank], "device_free_bytes": [2000, 1500], "available_bytes": 200}
    with pytest.raises(RunFailed, match=r"rank 1 needs about 1.9 KB and 1.5 KB are free on GPU 1: optimizer"):
        forecast.refuse_what_cannot_fit(found)
    roomy = found | {"device_free_bytes": [2000, 2000]}
    forecast.refuse_what_cannot_fit(roomy)  # the host holds no more than the processes themselves
    with pytest.raises(RunFailed, match=r"the 2 ranks need about 3.4 KB and 200 bytes are free"):
        forecast.refuse_what_cannot_fit(roomy, offloaded=True)
    forecast.refuse_what_cannot_fit(found | {"available_bytes": 3400}, offloaded=True)
