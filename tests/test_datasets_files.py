"""mnist and cifar10 from the files that their publishers hand out, and words where those are not there."""

import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import disk_formats
from lockstep import parameters
from lockstep.datasets import cifar10, mnist
from lockstep.engine.features import open_splits
from lockstep.errors import UsageError
from lockstep.orchestration import prepare
from training import results, train


@pytest.mark.parametrize("where", [".", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_is_read_from_its_idx_files_compressed_or_not(tmp_path, where, zipped, dotted):
    written = disk_formats.write_mnist(tmp_path / where, zipped=zipped, dotted=dotted)
    source = mnist.mnist(0, 0.2, folder=str(tmp_path))
    assert source.features.dtype == np.uint8
    assert np.array_equal(source.features[:, 0], written["train-images"])
    assert np.array_equal(source.labels, written["train-labels"])
    assert np.array_equal(source.test_features[:, 0], written["t10k-images"])
    assert np.array_equal(source.test_labels, written["t10k-labels"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "not an idx file"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an idx file of bytes"),
        (disk_formats.idx(np.zeros((2, 28, 28), np.uint8))[:-1], "should hold 2x28x28 bytes .* holds 1,567"),
        (disk_formats.idx(np.zeros((2, 28, 28), np.uint8)) + b"x", "holds 1,569"),
        (disk_formats.idx(np.zeros(2, np.uint8)), "other dimensions"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "should hold 4294967295x"),
    ],
)
def test_a_damaged_idx_file_is_refused_in_words(tmp_path, content, words):
    disk_formats.write_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        mnist.mnist(0, 0.2, folder=str(tmp_path))


def test_a_compressed_file_cut_short_is_refused_in_words(tmp_path):
    disk_formats.write_mnist(tmp_path, zipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = bytearray(file.read_bytes())
    torn = bytes(whole[:-30])
    whole[60] ^= 0xFF
    for content in (torn, bytes(whole), b"no gzip at all", gzip.compress(b"x")[:5]):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"idx3-ubyte\.gz cannot be decompressed"):
            mnist.mnist(0, 0.2, folder=str(tmp_path))


def test_missing_files_are_named_with_the_place_where_they_belong(tmp_path):
    with pytest.raises(UsageError) as caught:
        mnist.require(folder=str(tmp_path))
    for word in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", str(tmp_path), "data.folder="):
        assert word in str(caught.value)
    disk_formats.write_cifar_binary(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(UsageError) as caught:
        cifar10.require(folder=str(tmp_path))
    assert f"found no data_batch_4.bin in {tmp_path}" in str(caught.value)
    assert "data_batch_3" not in str(caught.value)
    assert "cifar-10-binary.tar.gz" in str(caught.value)


def test_a_run_whose_files_are_missing_writes_nothing_and_exits_with_2(command, tmp_path):
    words = ["data=mnist", f"data.folder={tmp_path}/nowhere", "distributed.world_size=1"]
    output = command.run(*words, "distributed.strategy=single", status=2)
    assert "found no train-images-idx3-ubyte.gz" in output
    assert not list(command.catalog.glob("*")) if command.catalog.exists() else True


@pytest.mark.parametrize("where", [".", "cifar-10-batches-bin"])
def test_cifar_is_read_from_its_binary_files(tmp_path, where):
    disk_formats.write_cifar_binary(tmp_path / where)
    source = cifar10.cifar10(0, 0.2, folder=str(tmp_path))
    pixels, labels = disk_formats.cifar_arrays(20, seed=1)
    assert source.features.shape == (100, 3, 32, 32)
    assert np.array_equal(source.features[20:40], pixels.reshape(-1, 3, 32, 32))
    assert np.array_equal(source.labels[20:40], labels)
    assert source.classes[3] == "cat"


def test_cifars_python_files_hold_the_same_pictures_and_are_read_without_unpickling(tmp_path, monkeypatch):
    disk_formats.write_cifar_binary(tmp_path / "binary")
    disk_formats.write_cifar_python(tmp_path / "python" / "cifar-10-batches-py")
    as_python_reads_it = pickle.loads(
        (tmp_path / "python/cifar-10-batches-py/data_batch_2").read_bytes(), encoding="bytes"
    )
    assert np.array_equal(
        as_python_reads_it[b"data"], disk_formats.cifar_arrays(20, 1)[0]
    )  # the test's own format
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    one, other = (cifar10.cifar10(0, 0.2, folder=str(tmp_path / name)) for name in ("binary", "python"))
    for field in ("features", "labels", "test_features", "test_labels"):
        assert np.array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar_batches_that_python_3_wrote_are_read_too(tmp_path, protocol):
    pixels, labels = disk_formats.cifar_arrays(12)
    for name in disk_formats.CIFAR_PARTS:
        batch = {"data": pixels, "labels": [int(label) for label in labels], "batch_label": "x"}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol))
    if protocol == 5:  # keeps arrays in another way, which the published files do not use
        with pytest.raises(UsageError, match="not a batch of CIFAR-10's Python version"):
            cifar10.cifar10(0, 0.2, folder=str(tmp_path))
        return
    source = cifar10.cifar10(0, 0.2, folder=str(tmp_path))
    assert np.array_equal(source.features[:12].reshape(12, -1), pixels)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["data", "labels", "whole"])
def test_a_hostile_batch_is_refused_and_nothing_of_it_is_run(tmp_path, place):
    pixels, labels = disk_formats.cifar_arrays(4)
    batch = {"data": pixels, "labels": labels.tolist()}
    evil = Hostile(f"touch {tmp_path}/owned")
    content = pickle.dumps(evil if place == "whole" else batch | {place: evil}, 2)
    disk_formats.write_cifar_python(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UsageError, match="data_batch_1 is not a batch"):
        cifar10.cifar10(0, 0.2, folder=str(tmp_path))
    assert not (tmp_path / "owned").exists()


def test_damaged_batches_are_refused_in_words(tmp_path):
    disk_formats.write_cifar_python(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"\x80\x02K\x01.", whole.replace(b"u1", b"u2")):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(UsageError, match="test_batch is not a batch of CIFAR-10"):
            cifar10.cifar10(0, 0.2, folder=str(tmp_path))
    disk_formats.write_cifar_binary(tmp_path)
    file = tmp_path / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match="it may be cut short"):
        cifar10.cifar10(0, 0.2, folder=str(tmp_path))
    file.write_bytes(bytes([99]) + bytes(3072))
    with pytest.raises(UsageError, match="labels are not 0 to 9"):
        cifar10.cifar10(0, 0.2, folder=str(tmp_path))


@pytest.fixture(scope="module")
def cifar_run(server, tmp_path_factory):
    """Trained on files of CIFAR-10's format."""
    place = tmp_path_factory.mktemp("cifar")
    disk_formats.write_cifar_binary(place / "files")
    words = ["data=cifar10", f"data.folder={place}/files", "model={name: mlp, hidden_sizes: [8]}"]
    words += ["training.epochs=4", "training.learning_rate=0.003"]
    words += ["distributed.strategy=single", "distributed.world_size=1", "distributed.threads_per_rank=1"]
    return train(server, place / "catalog", *words)


def test_pixels_stay_bytes_on_disk_and_reach_the_model_normalised(cifar_run):
    stored = load_file(cifar_run.data / "train.safetensors")
    assert stored["features"].dtype == np.uint8
    wanted = parameters.read(cifar_run.parameters)
    splits = open_splits(cifar_run.data, ("train", "validation", "test"), wanted, torch.float64)
    assert [len(labels) for _, labels in splits.values()] == [88, 12, 20]  # 0.1 of all 120 to validate
    features, _ = splits["train"]
    rows = torch.tensor([5, 3, 70])
    mean, std = (torch.tensor(wanted.data.options[name], dtype=torch.float64) for name in ("mean", "std"))
    expected = (torch.from_numpy(stored["features"])[rows] / 255.0).double()
    expected = (expected - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert torch.allclose(features.take(rows), expected, atol=1e-6)
    assert features.take(rows).dtype == torch.float64
    first, *_, last = (epoch["train"]["loss"] for epoch in results(cifar_run)["epochs"])
    assert last < 0.8 * first


def test_other_files_are_other_data_and_the_same_files_are_prepared_once(tmp_path, monkeypatch):
    from lockstep.catalog.run import claim

    disk_formats.write_mnist(tmp_path / "files")
    catalog = tmp_path / "catalog"
    data = parameters.read(None, ["data=mnist", f"data.folder={tmp_path}/files"]).data
    first = prepare.prepare(claim(catalog, "first"), data, 1, tmp_path)
    brighter = parameters.read(None, ["data=mnist", f"data.folder={tmp_path}/files", "data.mean=[0.5]"]).data
    called = []
    monkeypatch.setattr(mnist, "read_idx", called.append)
    again = prepare.prepare(claim(catalog, "again"), brighter, 1, tmp_path)
    assert not called
    assert again["identity"] == first["identity"]  # normalised otherwise, but the same data
    assert (first["mean"], again["mean"]) == ([0.1307], [0.5])
    monkeypatch.undo()
    disk_formats.write_mnist(tmp_path / "files", train=70)
    other = prepare.prepare(claim(catalog, "other"), data, 1, tmp_path)
    assert other["identity"] != first["identity"]
