"""Text by characters and by bytes, cut into regions, and a language model that learns it."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import parameters
from lockstep.datasets import text
from lockstep.engine.batches import Batches
from lockstep.engine.evaluation import evaluate_run
from lockstep.engine.features import open_splits
from lockstep.errors import UsageError
from lockstep.orchestration.splits import regions
from lockstep.strategies.base import Shard
from training import largest_difference, results, train

VERSE = "the quick brown fox jumps over the lazy dog. "
SMALL_GPT = "model={name: gpt, dim: 16, depth: 2, heads: 2}"


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=200))
def test_characters_are_numbered_by_code_point_and_can_be_read_back(whole):
    tokens, classes = text.characters(whole)
    assert "".join(classes[token] for token in tokens) == whole
    assert classes == sorted(set(whole))
    assert tokens.dtype == (np.uint8 if len(classes) <= 256 else np.int32)


def test_more_characters_than_a_byte_can_number_are_kept():
    whole = "".join(map(chr, range(0x4E00, 0x4E00 + 400))) + "\U0001f600"
    tokens, classes = text.characters(whole)
    assert tokens.dtype == np.int32
    assert "".join(classes[token] for token in tokens) == whole


def test_a_folder_is_read_in_the_order_of_its_paths_and_hidden_files_are_left_out(tmp_path):
    (tmp_path / "b").mkdir()
    for name, content in (("b/2.txt", "zwei"), ("a.md", "eins"), ("c.txt", "drei"), (".hidden", "nein")):
        (tmp_path / name).write_text(content)
    source = text.text(0, 0.2, path=str(tmp_path), context_length=2)
    assert "".join(source.classes[token] for token in source.tokens) == "einszweidrei"
    before = text.state(path=str(tmp_path))
    (tmp_path / "c.txt").write_text("vier")
    assert text.state(path=str(tmp_path)) != before


def test_bytes_are_classes_whatever_they_are(tmp_path):
    file = tmp_path / "any.bin"
    file.write_bytes(bytes(range(256)))
    source = text.text(0, 0.2, path=str(file), level="byte")
    assert source.tokens.tolist() == list(range(256))
    assert (source.classes[65], source.classes[200], len(source.classes)) == ("A", "0xc8", 256)


def test_what_cannot_be_read_as_text_is_refused_in_words(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8 at byte 4 \(0xdf\).*data\.level=byte"):
        text.text(0, 0.2, path=str(tmp_path))
    with pytest.raises(UsageError, match=r"found no file at .*nowhere.*data\.path=FILE"):
        text.require(path=str(tmp_path / "nowhere"))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(40, 500),
    length=st.integers(1, 5),
    validation=st.floats(0, 0.3),
    test=st.floats(0.2, 0.4),
)
def test_splits_are_contiguous_regions_that_hold_every_token_once(count, length, validation, test):
    source = text.Tokens(
        np.arange(count, dtype=np.int32), [str(i) for i in range(count)], length, "character"
    )
    parts = regions(source, validation, test)
    assert np.concatenate([parts[name] for name in ("train", "validation", "test")]).tolist() == list(
        range(count)
    )
    assert abs(len(parts["test"]) - count * test) <= 1
    assert abs(len(parts["validation"]) - count * validation) <= 1


def test_a_context_that_no_region_can_hold_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("abc" * 10)
    source = text.text(0, 0.2, path=str(tmp_path), context_length=20)
    with pytest.raises(UsageError, match=r"data\.context_length: found 20, but the text has 30 characters"):
        regions(source, 0.1, 0.2)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Parameters of a small language model on a file."""
    file = tmp_path_factory.mktemp("text") / "verse.txt"
    file.write_text(VERSE * 40)
    return (
        f"data={{name: text, path: {file}, context_length: 16}}",
        *(SMALL_GPT, "training.global_batch_size=13", "training.epochs=3", "training.learning_rate=0.01"),
        "distributed.threads_per_rank=1",
    )


@pytest.fixture(scope="module")
def run(server, words, tmp_path_factory):
    return train(
        server,
        tmp_path_factory.mktemp("alone"),
        *words,
        "distributed.strategy=single",
        "distributed.world_size=1",
    )


def test_labels_are_the_characters_that_follow(run):
    wanted = parameters.read(run.parameters)
    splits = open_splits(run.data, ("train", "validation", "test"), wanted, torch.float32)
    classes = json.loads((run.data / "data.json").read_text())["classes"]
    features, labels = splits["train"]
    assert (run.data / "train.safetensors").stat().st_size < len(
        VERSE
    ) * 40  # a byte a character, labels included
    batch = Batches(features, labels, 1, 5, Shard(0, 1, 1))(3)
    assert batch.features.dtype == batch.labels.dtype == torch.int64
    for inputs, following in zip(batch.features, batch.labels, strict=True):
        assert torch.equal(inputs[1:], following[:-1])
        assert "".join(classes[token] for token in [*inputs, following[-1]]) in VERSE * 2
    assert {len(labels) for _, labels in splits.values()} == {78, 11, 22}


def test_a_language_model_learns_and_is_judged_by_the_character(run):
    epochs = results(run)["epochs"]
    assert epochs[-1]["validation"]["loss"] < 0.6 * epochs[0]["train"]["loss"]
    judged = evaluate_run(run, parameters.read(run.parameters))["final"]
    assert judged["test"]["bits_per_character"] == pytest.approx(judged["test"]["loss"] / math.log(2))
    assert judged["test"]["perplexity"] == pytest.approx(math.exp(judged["test"]["loss"]))
    assert judged["test"]["accuracy"] > 0.5
    assert "confusion" not in judged["test"]
    assert judged["validation"]["loss"] == pytest.approx(epochs[-1]["validation"]["loss"], abs=1e-12)


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp",
        pytest.param("allreduce", marks=pytest.mark.slow),
        pytest.param("{name: allreduce, reduction: invariant}", marks=pytest.mark.slow),
    ],
)
def test_a_language_model_is_the_same_on_two_ranks(server, tmp_path, words, run, strategy):
    together = train(server, tmp_path, *words, f"distributed.strategy={strategy}")
    assert largest_difference(run, together) < 1e-10
    assert results(together)["epochs"][-1]["train"] == pytest.approx(
        results(run)["epochs"][-1]["train"], abs=1e-10
    )


def test_tied_weights_are_one_tensor_in_the_optimizer_and_whole_in_the_checkpoint(run):
    from training import final_state

    state = final_state(run)
    assert np.array_equal(state["model/head.weight"], state["model/embedding.token.weight"])
    assert "optimizer/embedding.token.weight/exp_avg" in state
    assert not [name for name in state if name.startswith("optimizer/head")]
