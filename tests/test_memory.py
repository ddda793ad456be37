"""The memory forecast: what was foretold stands beside what was measured, and what cannot fit is not started."""

import pytest
import torch

from lockstep.engine import forecast as engine_forecast
from lockstep.errors import RunFailed
from lockstep.files import read_json
from lockstep.orchestration import forecast
from lockstep.orchestration.free_memory import available_bytes
from marks import slow
from training import results, train

KINDS = ("parameters", "gradients", "optimizer")
BIG = ("model.hidden_sizes=[64, 64]", "training.epochs=1")


WHOLE = ["single", "ddp", "allreduce", "naive", "local_sgd", "parameter_server"]  # on every rank


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        *((strategy, "adam") if strategy == "ddp" else slow(strategy, "adam") for strategy in WHOLE),
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


@pytest.mark.slow
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
    rank = {
        "parameters": 400,
        "gradients": 400,
        "optimizer": 800,
        "gathered": 0,
        "activations": 300,
        "process": 100,
    }
    found = {"ranks": [rank, rank], "device_free_bytes": [2000, 1500], "available_bytes": 200}
    with pytest.raises(RunFailed, match=r"rank 1 needs about 1.9 KB and 1.5 KB are free on GPU 1: optimizer"):
        forecast.refuse_what_cannot_fit(found)
    roomy = found | {"device_free_bytes": [2000, 2000]}
    forecast.refuse_what_cannot_fit(roomy)  # the host holds no more than the processes themselves
    with pytest.raises(RunFailed, match=r"the 2 ranks need about 3.4 KB and 200 bytes are free"):
        forecast.refuse_what_cannot_fit(roomy, offloaded=True)
    forecast.refuse_what_cannot_fit(found | {"available_bytes": 3400}, offloaded=True)


@pytest.mark.parametrize("sharding", [slow("full_shard"), slow("shard_grad_op")])
def test_what_fsdp_gathers_for_its_passes_is_foretold_beside_its_shares(server, tmp_path, sharding):
    """Told by the layers themselves: what of the weights stands whole, and what of the gradients."""
    layers, root = [12 * 32 + 32, 32 * 48 + 48, 48 * 16 + 16], 16 * 5 + 5
    words = ("model=sharded_models:telling_whole", "training.epochs=1", "distributed.world_size=2")
    words += (f"distributed.strategy={{name: fsdp, sharding: {sharding}}}", "training.global_batch_size=12")
    stay = root + (max(layers) if sharding == "full_shard" else sum(layers))
    for pieces, gradients in (("6", root + max(layers)), ("3", root + sum(layers))):
        run = train(server, tmp_path, *words, f"training.micro_batch_size={pieces}")
        lines = run.rank_log(0).read_text().splitlines()
        told = [[int(count) for count in line.split()[1:]] for line in lines if line.startswith("whole")]
        assert max(weights for weights, _ in told) == 8 * stay
        assert max(whole for _, whole in told) <= 8 * gradients
        if sharding == "shard_grad_op" and pieces == "3":  # where all of them can be seen at once
            assert max(whole for _, whole in told) == 8 * gradients
        foretold = read_json(run.plan)["memory"]["ranks"][0]["gathered"]
        assert foretold == 8 * (stay + max(layers) + gradients)  # once more as they arrive
    assert "gathered of other ranks" in forecast.in_words(read_json(run.plan)["memory"]["ranks"][0])


def test_what_is_gathered_counts_for_what_fits(server, tmp_path):
    rank = {"parameters": 1, "gradients": 1, "optimizer": 1, "gathered": 500, "activations": 1, "process": 1}
    with pytest.raises(RunFailed, match=r"need about 505 bytes and 400 bytes are free: gathered of other"):
        forecast.refuse_what_cannot_fit({"ranks": [rank], "available_bytes": 400})
    with pytest.raises(RunFailed, match="are free on GPU 0"):
        found = {"ranks": [rank], "available_bytes": 400, "device_free_bytes": [400]}
        forecast.refuse_what_cannot_fit(found, offloaded=True)


def test_the_optimizer_is_measured_at_the_first_step_that_was_not_left_out(server, tmp_path):
    words = ("training.precision=fp16", "model=own_models:loud", "distributed.strategy=ddp")
    run = train(server, tmp_path, *words, "training.epochs=2", "training.learning_rate=0.0001")
    assert any('"skipped": true' in line for line in run.metrics_file(0).read_text().splitlines()[:2])
    for rank in results(run)["memory"]:
        assert rank["measured_bytes"]["optimizer"] == rank["predicted_bytes"]["optimizer"] > 0


def control_group(folder, limit, used, stat):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (limit, used):
        (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("told", "own", "parent", "left"),
    [
        (
            "0::/pod/job",
            (1000, 900, "inactive_file 300\nactive_file 200\nshmem 50\n"),
            ("max", 5000, ""),
            600,
        ),
        (
            "0::/pod/job",
            ("max", 900, ""),
            (2000, 1700, "inactive_file 100\n"),
            400,
        ),  # the limit of its parent
        ("0::/pod/job", (9000, 100, ""), (2000, 1700, ""), 300),
        ("0::/pod/job", (1000, 1200, ""), ("max", 0, ""), 0),
        ("0::/../job", (1000, 900, ""), ("max", 0, ""), 7_000 * 1024),  # outside of what is mounted here
        ("0::/pod/job", ("max", 900, ""), ("max", 5000, ""), 7_000 * 1024),
    ],
)
def test_what_is_free_is_what_the_narrowest_control_group_leaves_without_the_files_that_it_has_read(
    tmp_path, told, own, parent, left
):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 7000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(f"{told}\n")
    for folder, (limit, used, stat) in (("pod/job", own), ("pod", parent)):
        control_group(
            tmp_path / "sys/fs/cgroup" / folder, ("memory.max", limit), ("memory.current", used), stat
        )
    assert available_bytes(tmp_path) == left


def test_control_groups_of_the_first_version_count_as_well(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("11:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/x\n")
    group = tmp_path / "sys/fs/cgroup/memory"  # a container sees its own folder as the root
    stat = "cache 1\ntotal_inactive_file 30\ntotal_active_file 20\n"
    control_group(group, ("memory.limit_in_bytes", 1000), ("memory.usage_in_bytes", 950), stat)
    assert available_bytes(tmp_path) == 100
    assert available_bytes(tmp_path / "nowhere") is None
