import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from lockstep.catalog import store
from lockstep.errors import CorruptRecord
from lockstep.files import sha256_of


@pytest.fixture
def catalog(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / ".catalog"


def make(path, content=b"numbers" * 1000):
    path.write_bytes(content)
    return path


def test_put_moves_a_file_under_its_digest_read_only(catalog, tmp_path):
    file = make(tmp_path / "train")
    digest = sha256_of(file)
    assert store.put(catalog, file) == digest
    stored = catalog / ".store" / digest
    assert not file.exists()
    assert sha256_of(stored) == digest
    assert stored.stat().st_mode & 0o777 == 0o444


def test_ten_runs_hold_one_copy(catalog, tmp_path):
    digest = store.put(catalog, make(tmp_path / "train"))
    for number in range(10):
        store.link(catalog, digest, tmp_path / "run" / f"{number}.safetensors")
    inodes = {path.stat().st_ino for path in (tmp_path / "run").iterdir()}
    assert inodes == {(catalog / ".store" / digest).stat().st_ino}
    # The same again, put by another: still the one copy; and linking twice leaves nothing beside.
    assert store.put(catalog, make(tmp_path / "again")) == digest
    store.link(catalog, digest, tmp_path / "run" / "0.safetensors")
    assert {path.stat().st_ino for path in (tmp_path / "run").iterdir()} == inodes
    assert len(list((tmp_path / "run").iterdir())) == 10


@pytest.mark.parametrize("position", [0, 3500, 6999])
def test_damaged_bytes_are_never_linked_and_make_way_for_good_ones(catalog, tmp_path, position):
    digest = store.put(catalog, make(tmp_path / "train"))
    stored = catalog / ".store" / digest
    stored.chmod(0o644)
    content = bytearray(stored.read_bytes())
    content[position] ^= 1
    stored.write_bytes(content)
    with pytest.raises(CorruptRecord, match=digest):
        store.link(catalog, digest, tmp_path / "run" / "train")
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(CorruptRecord, match="missing"):
        store.link(catalog, digest, tmp_path / "run" / "train")
    store.put(catalog, make(tmp_path / "train"))
    store.link(catalog, digest, tmp_path / "run" / "train")
    assert sha256_of(tmp_path / "run" / "train") == digest


def test_put_replaces_a_damaged_copy(catalog, tmp_path):
    digest = store.put(catalog, make(tmp_path / "train"))
    stored = catalog / ".store" / digest
    stored.unlink()
    stored.write_bytes(b"damaged")
    assert store.put(catalog, make(tmp_path / "train")) == digest
    assert sha256_of(stored) == digest


def test_a_link_in_the_store_is_not_followed(catalog, tmp_path):
    digest = store.put(catalog, make(tmp_path / "train"))
    stored = catalog / ".store" / digest
    stored.rename(tmp_path / "elsewhere")
    stored.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptRecord, match=digest):
        store.link(catalog, digest, tmp_path / "run" / "train")
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_bytes_are_copied_where_links_fail(catalog, tmp_path, monkeypatch, code):
    digest = store.put(catalog, make(tmp_path / "train"))

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    store.link(catalog, digest, tmp_path / "run" / "train")
    assert sha256_of(tmp_path / "run" / "train") == digest
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train"]


def test_a_file_of_another_file_system_is_copied_into_the_store(catalog, tmp_path, monkeypatch):
    file = make(tmp_path / "train")
    from pathlib import Path

    replace = Path.replace

    def across(self, target):
        if self == file:
            raise OSError(errno.EXDEV, "cross-device link")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", across)
    digest = store.put(catalog, file)
    assert sha256_of(catalog / ".store" / digest) == digest
    assert not file.exists()


def test_many_writers_of_the_same_and_of_different_data_lose_nothing(catalog, tmp_path):
    files = [make(tmp_path / f"file-{number}", bytes([number % 5]) * 10_000) for number in range(40)]

    def put_and_link(file):
        digest = store.put(catalog, file)
        store.link(catalog, digest, tmp_path / "run" / file.name)
        store.remember(catalog, "the-same-identity", {"digest": digest})
        return file.name, digest

    with ThreadPoolExecutor(8) as pool:
        digests = dict(pool.map(put_and_link, files))
    assert len(set(digests.values())) == 5
    for name, digest in digests.items():
        assert sha256_of(tmp_path / "run" / name) == digest
    assert store.recall(catalog, "the-same-identity")["digest"] in digests.values()
    assert not list(catalog.rglob(".tmp-*"))


def test_what_is_remembered_is_recalled_and_damage_is_forgotten(catalog):
    assert store.recall(catalog, "abc") is None
    store.remember(catalog, "abc", {"train": "0" * 64})
    assert store.recall(catalog, "abc") == {"train": "0" * 64}
    path = catalog / ".store" / "identities" / "abc.json"
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert store.recall(catalog, "abc") is None


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_a_name_cannot_lead_out_of_the_store(catalog, tmp_path, name):
    with pytest.raises(AssertionError):
        store.recall(catalog, name)
    with pytest.raises(AssertionError):
        store.link(catalog, name, tmp_path / "run" / "x")
