"""Promise 1: the same training at every world size, and the same bits when it is repeated."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.engine.batches import Batches, map_split
from lockstep.strategies.base import Shard, key
from marks import slow
from training import bits, final_state, largest_difference, results, train


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(
        server, tmp_path_factory.mktemp("single"), "distributed.strategy=single", "distributed.world_size=1"
    )


@pytest.mark.parametrize("ranks", [slow(1), 2, 3, slow(4)])
def test_ddp_equals_the_single_process_over_a_whole_run(server, tmp_path, reference, ranks):
    run = train(server, tmp_path, f"distributed.world_size={ranks}")
    assert largest_difference(run, reference) < 1e-10
    for mine, theirs in zip(results(run)["epochs"], results(reference)["epochs"], strict=True):
        for split in ("train", "validation"):
            assert mine[split]["samples"] == theirs[split]["samples"]
            assert mine[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-10)
            assert mine[split]["accuracy"] == pytest.approx(theirs[split]["accuracy"], abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        ["training.optimizer=sgd", "training.learning_rate=0.05", "training.max_grad_norm=0.1"],
        ["training.optimizer=adamw", "training.schedule={name: cosine, warmup_steps: 4}"],
        ["training.schedule={name: linear, warmup_steps: 3}", "training.global_batch_size=2"],
    ],
    ids=["sgd clipped", "adamw cosine", "a rank without samples"],
)
def test_optimizers_schedules_and_clipping_are_the_same_at_any_world_size(server, tmp_path, options):
    options = [*options, "training.epochs=1"]
    if "training.global_batch_size=2" in options:
        options.append(
            "data.num_samples=70"
        )  # 49 training samples in batches of 2: the last one leaves rank 0 alone
        ranks = 2
    else:
        ranks = 3
    alone = train(server, tmp_path, *options, "distributed.strategy=single", "distributed.world_size=1")
    together = train(server, tmp_path, *options, f"distributed.world_size={ranks}")
    assert largest_difference(alone, together) < 1e-10


def test_the_same_run_twice_gives_the_same_bits(server, tmp_path):
    options = ["distributed.world_size=3", "training.precision=fp32", "model.dropout=0.2"]
    assert bits(train(server, tmp_path, *options)) == bits(train(server, tmp_path, *options))


def test_another_seed_gives_other_bits(server, tmp_path):
    assert bits(train(server, tmp_path, "seed=1")) != bits(train(server, tmp_path, "seed=2"))


def test_learning_happens(reference):
    losses = [epoch["train"]["loss"] for epoch in results(reference)["epochs"]]
    assert losses[-1] < 0.9 * losses[0]
    assert all(
        abs(value).max() > 0 for name, value in final_state(reference).items() if name.startswith("optimizer")
    )


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 200),
    batch=st.integers(1, 64),
    ranks=st.integers(1, 9),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_sample_comes_exactly_once_per_epoch_at_any_world_size(samples, batch, ranks, epoch, seed):
    features = torch.arange(samples, dtype=torch.float64).reshape(samples, 1)
    labels = torch.arange(samples)
    parts = [Batches(features, labels, seed, batch, Shard(rank, rank + 1, ranks)) for rank in range(ranks)]
    steps = parts[0].steps_per_epoch
    seen, weights = [], 0.0
    for step in range(epoch * steps, (epoch + 1) * steps):
        shares = [part(step) for part in parts]
        assert {each.global_samples for each in shares} == {sum(each.samples for each in shares)}
        assert max(each.samples for each in shares) - min(each.samples for each in shares) <= 1
        for each in shares:
            assert len(each.labels) >= 1  # a model can always run
            seen += each.labels[: each.samples].tolist()
            weights += each.weight * each.samples
    assert sorted(seen) == list(range(samples))
    assert weights == samples


def test_batches_is_a_pure_function_of_the_step():
    features, labels = torch.randn(50, 3), torch.arange(50)
    forwards, backwards = (Batches(features, labels, 7, 8, Shard(1, 2, 2)) for _ in range(2))
    ahead = [forwards(step).labels.tolist() for step in range(20)]
    behind = [backwards(step).labels.tolist() for step in reversed(range(20))]
    assert ahead == behind[::-1]


def test_epochs_are_shuffled_differently():
    batches = Batches(torch.randn(100, 1), torch.arange(100), 3, 100, Shard(0, 1, 1))
    assert batches(0).labels.tolist() != batches(1).labels.tolist()


def test_slices_cover_everything_once():
    for count in range(12):
        for parts in range(1, 8):
            covered = [
                i for index in range(parts) for i in range(count)[Shard(index, index + 1, parts).rows(count)]
            ]
            assert covered == list(range(count))


def test_keys_of_random_draws_differ_in_every_part():
    keys = {key(seed, step, rank) for seed in range(4) for step in range(4) for rank in range(4)}
    assert len(keys) == 64


def test_ranks_map_the_file_of_the_data_instead_of_reading_it(tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "train.safetensors"
    save_file({"features": torch.randn(1000, 10), "labels": torch.arange(1000)}, file)
    features, _ = map_split(file, torch.float32)
    areas = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    assert any(
        int(low, 16) <= features.data_ptr() < int(high, 16) for low, high in (a[0].split("-") for a in areas)
    )
