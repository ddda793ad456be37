"""Crops and flips are a function of (seed, epoch, sample): the same at any world size, in any order, after a resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import parameters
from lockstep.engine.augmentation import DOWN, LANES, crop_and_flip, offsets
from lockstep.engine.batches import Batches
from lockstep.engine.features import Table
from lockstep.errors import ParametersError, UsageError
from lockstep.parameters import Augmentation
from lockstep.strategies.base import Shard
from training import largest_difference, train

HOW = Augmentation(crop_padding=2, flip=True)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
)
def test_what_a_sample_draws_does_not_depend_on_its_company(seed, epoch, rows):
    together = offsets(seed, epoch, torch.tensor(rows))
    assert together.shape == (len(rows), LANES)
    assert together.min() >= 0
    assert together.max() < 1
    for place, row in enumerate(rows):
        assert np.array_equal(offsets(seed, epoch, torch.tensor([row]))[0], together[place])
    others = (offsets(seed ^ 1, epoch, torch.tensor(rows)), offsets(seed, epoch + 1, torch.tensor(rows)))
    assert not any(np.array_equal(together, other) for other in others)


def test_draws_are_spread_evenly_and_independently():
    draws = offsets(7, 3, torch.arange(20_000))
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01
    assert np.abs(draws.var(0) - 1 / 12).max() < 0.005
    next_epoch = offsets(7, 4, torch.arange(20_000))
    table = np.corrcoef(np.column_stack([draws, next_epoch, np.roll(draws, 1, axis=0)]).T)
    assert np.abs(table - np.eye(len(table))).max() < 0.04
    counts = np.bincount((draws[:, DOWN] * 9).astype(int), minlength=9)
    assert counts.min() > 2000  # of the nine offsets that a padding of 4 has


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 3, 6, 7)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_crops_and_flips_are_those_of_a_loop_over_samples(shape, kind):
    images = torch.randint(0, 255, shape).to(kind)
    draws = offsets(1, 2, torch.arange(5))
    found = crop_and_flip(images, HOW, draws)
    for index in range(5):
        down, across = (int(draws[index, lane] * 5) for lane in (0, 1))
        padded = torch.nn.functional.pad(images[index], (2, 2, 2, 2))
        expected = padded[..., down : down + 6, across : across + 7]
        expected = expected.flip(-1) if draws[index, 2] < 0.5 else expected
        assert torch.equal(found[index], expected)
    assert found.dtype == kind


def table(seed=3):
    images = torch.arange(50 * 3 * 6 * 6).remainder(251).to(torch.uint8).view(50, 3, 6, 6)
    return Table(images, torch.float64, [0.5] * 3, [0.25] * 3, augmentation=HOW, seed=seed), torch.arange(50)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_every_sample_is_varied_alike_at_any_world_size_and_from_any_step(ranks):
    features, labels = table()
    alone = Batches(features, labels, 3, 8, Shard(0, 1, 1))
    shares = [Batches(*table(), 3, 8, Shard(rank, rank + 1, ranks)) for rank in range(ranks)]
    for step in (9, 3, 0, 13):  # in no order: what a resumed run asks for first
        whole = alone(step)
        parts = [share(step) for share in shares]
        seen = torch.cat([part.features[: part.samples] for part in parts])
        assert torch.equal(seen, whole.features)


def test_every_epoch_varies_a_sample_anew_and_evaluation_never():
    features, _ = table()
    row = torch.tensor([11])
    varied = {features.take(row, epoch).numpy().tobytes() for epoch in range(12)}
    assert len(varied) > 8
    plain = features.take(row)
    assert torch.allclose(plain, (features.values[11:12].double() / 255 - 0.5) / 0.25, atol=1e-14)


def test_without_augmentation_training_sees_the_samples_as_they_are():
    values = torch.rand(10, 3, 4, 4)
    features = Table(values, augmentation=Augmentation(), seed=1)
    assert torch.equal(features.take(torch.tensor([3, 1]), 5), values[[3, 1]])


def test_an_augmented_run_is_the_same_on_two_ranks(server, tmp_path):
    words = ["data=own_data:images", "model={name: mlp, hidden_sizes: [8]}", "training.epochs=2"]
    words += ["data.augmentation={crop_padding: 2, flip: true}", "distributed.threads_per_rank=1"]
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    together = train(server, tmp_path, *words)
    plain = train(server, tmp_path, *words, "data.augmentation={flip: false}")
    assert largest_difference(alone, together) < 1e-10
    assert largest_difference(plain, together) > 1e-3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.augmentation.flips=true", "did you mean flip"),
        ("data.augmentation.crop_padding=-1", "a whole number from 0 to 1,024"),
        ("data.augmentation.crop_scale=[0.5]", "a list with 2 values"),
        ("data.augmentation.crop_scale=[0, 1]", "above 0"),
        ("data.augmentation=5", "a mapping with the keys crop_padding, flip, crop_scale"),
    ],
)
def test_a_wrong_augmentation_is_refused_in_words(word, message):
    with pytest.raises(ParametersError, match=message):
        parameters.read(None, ["data=cifar10", word])


def test_an_augmentation_that_would_do_nothing_is_refused(server, tmp_path):
    with pytest.raises(
        UsageError, match=r"data\.augmentation: .* samples of shape \(12,\), which are no images"
    ):
        train(server, tmp_path, "data.augmentation={flip: true}")
    with pytest.raises(
        UsageError, match=r"data\.augmentation\.crop_scale: .* only with data\.name: image_folder"
    ):
        train(server, tmp_path, "data=own_data:images", "data.augmentation={crop_scale: [0.1, 1.0]}")
