"""The data: real, stratified, seeded, prepared once, and apart."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.datasets import Source, digits, synthetic
from lockstep.errors import UsageError
from lockstep.files import read_json
from lockstep.orchestration import splits
from training import train


def test_digits_are_scikit_learns_own(monkeypatch):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    read = digits.digits(0, 0.2)
    assert np.array_equal(read.features.reshape(-1, 64) * 16, bunch.data)
    assert np.array_equal(read.labels, bunch.target)
    nowhere = SimpleNamespace(submodule_search_locations=[])
    monkeypatch.setattr(digits, "find_spec", lambda _: nowhere)  # as if the file were kept elsewhere
    loaded = digits.digits(0, 0.2)
    assert np.array_equal(read.features, loaded.features)
    assert np.array_equal(read.labels, loaded.labels)


def test_synthetic_data_is_learnable_and_its_test_split_is_drawn_apart():
    source = synthetic.synthetic(7, 0.25, num_samples=4000, input_size=10, num_classes=3)
    assert source.features.shape == (3000, 10)
    assert source.test_features.shape == (1000, 10)
    assert not set(map(bytes, source.features)) & set(map(bytes, source.test_features))
    fit, *_ = np.linalg.lstsq(source.features, np.eye(3)[source.labels], rcond=None)
    assert ((source.test_features @ fit).argmax(1) == source.test_labels).mean() > 0.8
    more = synthetic.synthetic(7, 0.25, num_samples=8000, input_size=10, num_classes=3)
    assert np.array_equal(more.features[:100], source.features[:100])  # more samples change no other draw


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=6).filter(lambda c: sum(c) >= 8),
    validation=st.floats(0, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 2**63 - 1),
)
def test_splits_are_stratified_seeded_and_hold_every_sample_once(counts, validation, test, seed):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    features = np.arange(len(labels), dtype=np.float32).reshape(-1, 1)
    source = Source(features, labels, [str(i) for i in range(len(counts))])
    parts, again = (splits.split(source, validation, test, seed) for _ in range(2))
    rows = np.concatenate([parts[name][0].ravel() for name in splits.SPLITS])
    assert sorted(rows) == list(range(len(labels)))
    for name in splits.SPLITS:
        assert np.array_equal(parts[name][0], again[name][0])
    assert len(parts["test"][1]) == round(len(labels) * test)
    for number, count in enumerate(counts):
        assert abs((parts["test"][1] == number).sum() - count * test) < 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Source(np.ones((3, 2), np.float32), np.array([0, 1]), ["a", "b"]), "3 samples but 2 labels"),
        (
            Source(np.ones((2, 2), np.float32), np.array([0, 5]), ["a", "b"]),
            "labels from 0 to 5 for 2 classes",
        ),
        (Source(np.ones((2, 2)), np.array([0, 1]), ["a", "b"]), "float64"),
        (Source(np.full((2, 2), np.nan, np.float32), np.array([0, 1]), ["a", "b"]), "NaN or infinite"),
        (Source(np.ones((1, 2), np.float32), np.array([0]), ["a", "b"]), "1 samples"),
    ],
)
def test_data_that_no_training_could_use_is_refused_in_words(source, words):
    with pytest.raises(UsageError, match=words):
        splits.check(source, "mine")


@pytest.mark.parametrize(
    ("words", "empty"),
    [
        (("data.test_fraction=0.0001",), "test"),
        (("data.test_fraction=0.9999", "data.validation_fraction=0"), "train"),
    ],
)
def test_a_split_that_would_be_empty_is_refused_before_anything_is_trained(server, tmp_path, words, empty):
    with pytest.raises(
        UsageError, match=rf"data.test_fraction .* leave no sample of 1,797 in the {empty} split"
    ):
        train(server, tmp_path, "data=digits", *words)


def test_data_of_a_users_own_is_identified_by_what_it_holds(server, tmp_path):
    """Also where it came from a file, which nobody knows of but the function."""
    file = tmp_path / "scale"
    words = ("data=own_data:scaled", f"data.file={file}", "training.epochs=1")
    found = []
    for scale in ("1", "1", "2"):
        file.write_text(scale)
        found.append(read_json(train(server, tmp_path, *words).data / "data.json")["identity"])
    assert found[0] == found[1] != found[2]
