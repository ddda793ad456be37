"""Photographs in ImageNet's layout: listed once, decoded as they are needed, the same at any step and world size."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import disk_formats
from conftest import alive, wait_until
from lockstep import parameters
from lockstep.catalog.run import claim
from lockstep.datasets import _decode, image_folder
from lockstep.engine.batches import Batches
from lockstep.engine.decoding import Decoder
from lockstep.engine.features import open_splits
from lockstep.errors import MissingPackage, RunFailed, UsageError
from lockstep.orchestration import prepare
from lockstep.strategies.base import Shard
from training import largest_difference, results, train

WORDS = ("data.image_size=16", "data.resize=20", "data.workers=1", "training.global_batch_size=5")
AUGMENTED = "data.augmentation={crop_scale: [0.3, 1.0], flip: true, crop_padding: 1}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """18 images below train, 18 below val."""
    place = tmp_path_factory.mktemp("photos")
    disk_formats.write_images(place)
    return place


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """A run's data folder and parameters."""
    wanted = parameters.read(None, ["data=image_folder", f"data.folder={photos}", *WORDS, AUGMENTED])
    run = claim(tmp_path_factory.mktemp("catalog"), "prepared")
    prepare.prepare(run, wanted.data, wanted.seed, photos)
    return run, wanted


@pytest.fixture
def opened(prepared):
    """Its splits; the processes that decode are ended afterwards."""
    run, wanted = prepared
    splits = open_splits(run.data, ("train", "validation", "test"), wanted, torch.float32)
    yield splits
    splits["train"][0].decoder.close()


def test_the_folders_are_the_classes_and_val_is_what_is_tested_on(prepared, photos):
    run, _ = prepared
    source = image_folder.image_folder(0, 0.2, folder=str(photos), image_size=16, resize=20)
    assert source.classes == ["apple", "leaf", "sky"]
    assert source.paths[0] == "train/apple/000.png"
    assert (
        source.digests[0].tobytes().hex()
        == hashlib.sha256((photos / source.paths[0]).read_bytes()).hexdigest()
    )
    data = prepare.read_json(run.data / "data.json")
    assert {name: file["samples"] for name, file in data["files"].items()} == {
        "train": 14,
        "validation": 4,
        "test": 18,
    }
    assert (
        sum(file["bytes"] for file in data["files"].values()) < 8000
    )  # a list: the images stay where they are


def test_folders_without_splits_are_split(tmp_path):
    disk_formats.write_images(tmp_path, splits=(".",))
    source = image_folder.image_folder(0, 0.2, folder=str(tmp_path), image_size=16, resize=20)
    assert (len(source.paths), source.parts) == (18, {})
    disk_formats.write_images(tmp_path / "three", splits=("train", "val", "test"), each=2)
    source = image_folder.image_folder(0, 0.2, folder=str(tmp_path / "three"), image_size=16, resize=20)
    assert {name: len(rows) for name, rows in source.parts.items()} == {
        "train": 6,
        "validation": 6,
        "test": 6,
    }


def test_missing_images_are_refused_with_where_they_belong(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            UsageError, match=r"found no images in folders of classes in .*data\.folder=FOLDER"
        ):
            image_folder.require(folder=str(place))


def test_without_pillow_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackage, match="--extra vision"):
        image_folder.require(folder=str(tmp_path))


def test_the_middle_of_each_image_is_what_pillow_would_cut(photos, opened):
    from PIL import Image

    features, labels = opened["test"]
    listing = image_folder.listed(photos)["test"]
    got = features.take(torch.arange(18))
    assert got.shape == (18, 3, 16, 16)
    assert labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    mean, std = (
        np.array(values).reshape(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    for row, file in enumerate(listing):
        with Image.open(photos / file) as image:
            side = 0.8 * min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            box = (left, top, left + side, top + side)
            plain = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, box=box))
        expected = (plain.transpose(2, 0, 1) / 255 - mean) / std
        assert np.abs(got[row].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("ranks", [2, 3])
def test_batches_are_the_same_at_any_world_size_from_any_step_and_asked_for_ahead_or_not(
    prepared, opened, ranks
):
    run, wanted = prepared
    alone = Batches(*opened["train"], wanted.seed, 5, Shard(0, 1, 1))
    whole = [alone(step) for step in range(7)]  # 3 steps an epoch
    other = open_splits(run.data, ("train",), wanted, torch.float32)
    try:
        for rank in range(ranks):
            share = Batches(*other["train"], wanted.seed, 5, Shard(rank, rank + 1, ranks))
            for step in (6, 2, 3):
                part, rows = share(step), Shard(rank, rank + 1, ranks).rows(len(whole[step].labels))
                assert torch.equal(part.labels, whole[step].labels[rows])
                assert torch.equal(part.features, whole[step].features[rows])
    finally:
        other["train"][0].decoder.close()
    again = opened["train"][0]
    row = torch.tensor([4])
    assert not torch.equal(again.take(row, 0), again.take(row, 1))
    assert torch.equal(again.take(row, 1), again.take(row, 1))


def test_random_crops_are_parts_of_the_image_of_the_asked_area():
    for _ in range(300):
        width, height = np.random.randint(5, 400, 2).tolist()
        draws = np.random.rand(4).tolist()
        left, top, right, bottom = _decode.part_of(width, height, [0.2, 0.6, *draws])
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if right - left < width and bottom - top < height:
            assert 0.2 - 1e-9 <= (right - left) * (bottom - top) / (width * height) <= 0.6 + 1e-9
            assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_a_jpeg_decoded_at_part_of_its_size_shows_the_same_part(tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:480, None], np.uint8(128)), axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for crop in (None, [0.5, 0.5, 0.0, 0.5, 0.7, 0.2]):
        jpg, png = (
            np.frombuffer(
                _decode.pixels(file, hashlib.sha256(file.read_bytes()).hexdigest(), 32, 36, crop), np.uint8
            )
            for file in (tmp_path / "a.jpg", tmp_path / "a.png")
        )
        assert np.abs(jpg.astype(int) - png).max() <= 6


def tasks(photos, count=6):
    files = sorted((photos / "train").rglob("*.*"))[:count]
    return [
        (str(file.relative_to(photos)), hashlib.sha256(file.read_bytes()).hexdigest(), None) for file in files
    ]


def test_greys_of_16_bits_are_scaled_and_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16)
    _decode.Image.fromarray(ramp).save(tmp_path / "ramp.png")
    content = (tmp_path / "ramp.png").read_bytes()
    seen = _decode.pixels(tmp_path / "ramp.png", hashlib.sha256(content).hexdigest(), 64, 64, None)
    found = np.frombuffer(seen, np.uint8).reshape(64, 64, 3)
    assert np.abs(found - ramp[..., None] / 257.0).max() <= 1


def test_more_images_than_there_is_room_for_are_decoded_in_turns(photos):
    decoder = Decoder(str(photos), 16, 20, 2, 1)
    wanted = tasks(photos, 18)
    try:
        assert decoder.capacity == 16
        decoder.expect("never taken", wanted[:10])
        many = decoder.take("many", wanted * 3)
        for place in range(3):
            assert torch.equal(many[place * 18 : (place + 1) * 18], decoder.take("some", wanted[:18]))
        assert sorted(decoder._free) == list(range(16))
    finally:
        decoder.close()


def test_an_image_that_changed_or_is_damaged_fails_the_run_by_name(tmp_path):
    disk_formats.write_images(tmp_path, each=2)
    wanted = tasks(tmp_path)
    first = tmp_path / wanted[0][0]
    decoder = Decoder(str(tmp_path), 16, 20, 1, 2)
    try:
        first.write_bytes(b"not an image")
        with pytest.raises(RunFailed, match=rf"{first}: it is not the file that was prepared"):
            decoder.take("x", wanted[:1])
        digest = hashlib.sha256(b"not an image").hexdigest()
        with pytest.raises(RunFailed, match=rf"{first}: cannot identify image file"):
            decoder.take("x", [(wanted[0][0], digest, None)])
        (tmp_path / wanted[1][0]).unlink()
        with pytest.raises(RunFailed, match="No such file"):
            decoder.take("x", wanted[1:2])
    finally:
        decoder.close()


def test_the_death_of_a_decoding_process_is_told_and_not_waited_for(photos):
    decoder = Decoder(str(photos), 16, 20, 1, 2)
    try:
        decoder.take("x", tasks(photos, 1))
        os.kill(decoder._processes[0].pid, signal.SIGKILL)
        with pytest.raises(RunFailed, match=r"ended \(killed by signal 9\)"):
            decoder.take("y", tasks(photos, 2))
    finally:
        decoder.close()


OWNER = """
import sys, time
from lockstep.engine.decoding import Decoder
path, digest, folder = sys.argv[1:]
decoder = Decoder(folder, 16, 20, 2, 2)
decoder.take("x", [(path, digest, None)])
print(*[process.pid for process in decoder._processes], flush=True)
time.sleep(600)
"""


def test_decoding_processes_die_with_their_rank(photos):
    path, digest, _ = tasks(photos, 1)[0]
    words = [sys.executable, "-c", OWNER, path, digest, str(photos)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        owner.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_decoding_processes_import_neither_torch_nor_numpy(photos):
    decoder = Decoder(str(photos), 16, 20, 1, 2)
    try:
        decoder.take("x", tasks(photos, 1))
        maps = Path(f"/proc/{decoder._processes[0].pid}/maps").read_text()
        assert "PIL" in maps
        assert "torch" not in maps
        assert "numpy" not in maps
    finally:
        decoder.close()


def test_a_run_on_images_learns_and_is_the_same_on_two_ranks(server, photos, tmp_path):
    words = ["data=image_folder", f"data.folder={photos}", *WORDS, AUGMENTED, "training.epochs=3"]
    words += [
        "model={name: vit, patch_size: 8, dim: 16, depth: 1, heads: 2}",
        "distributed.threads_per_rank=1",
    ]
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    together = train(server, tmp_path, *words, "distributed.strategy=allreduce")
    assert largest_difference(alone, together) < 1e-10
    epochs = results(alone)["epochs"]
    assert epochs[-1]["train"]["loss"] < epochs[0]["train"]["loss"]


def test_files_moved_or_touched_are_the_same_data_and_other_contents_are_not(photos, tmp_path):
    import shutil

    copy = shutil.copytree(photos, tmp_path / "copy")
    found = []
    for place in (photos, copy, copy):
        wanted = parameters.read(None, ["data=image_folder", f"data.folder={place}", *WORDS])
        run = claim(tmp_path / "catalog", None)
        found.append(prepare.prepare(run, wanted.data, 1, tmp_path))
        if place == copy:
            file = next((copy / "train").rglob("*.png"))
            file.write_bytes(file.read_bytes() + b"\0")
    assert found[0]["identity"] == found[1]["identity"] != found[2]["identity"]
    assert [each["folder"] for each in found] == [str(photos), str(copy), str(copy)]
