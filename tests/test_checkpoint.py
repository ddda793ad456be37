"""A checkpoint is the old one or the new one, whole or absent, and every changed byte of it is found."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import wait_until
from lockstep.catalog.seal import verify_folder
from lockstep.engine import checkpoint
from lockstep.errors import CorruptRecord

META = {"epochs_done": 1, "steps_per_epoch": 10, "best": None}


def state(value: float = 1.0):
    return {
        "model": {"weight": torch.full((4, 3), value), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"weight/exp_avg": torch.zeros(4, 3), "weight/step": torch.tensor(3.0)},
    }


def test_what_was_saved_is_what_is_loaded(tmp_path):
    checkpoint.save(tmp_path, state(2.5), META | {"step": 10})
    found, passed_over = checkpoint.newest(tmp_path)
    assert passed_over == []
    assert found.step == 10
    for part, tensors in state(2.5).items():
        loaded = found.tensors()[part]
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tied_sliced_and_transposed_weights_are_saved_as_they_are(tmp_path):
    base = torch.randn(6, 4)
    tensors = {"a": base, "tied": base, "slice": base[1:3], "transposed": base.t(), "empty": base[:0]}
    checkpoint.save(tmp_path, {"model": tensors, "optimizer": {}}, META | {"step": 1})
    loaded = checkpoint.newest(tmp_path)[0].tensors()["model"]
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_flipped_byte_and_every_truncation_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    path = checkpoint.save(folder, state(), META | {"step": 10})
    file = data.draw(st.sampled_from(sorted(path.iterdir())))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file.write_bytes(content)
    found, passed_over = checkpoint.newest(folder)
    assert found is None
    assert path.name in passed_over[0]
    shutil.rmtree(folder)


def test_the_newest_valid_checkpoint_is_chosen_and_the_damaged_one_named(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, state(step), META | {"step": step})
    (tmp_path / "step-00000030" / "optimizer.safetensors").unlink()
    shutil.copy(
        tmp_path / "step-00000010/model.safetensors", tmp_path / "step-00000020/model.safetensors"
    )  # swapped
    found, passed_over = checkpoint.newest(tmp_path)
    assert found.step == 10
    assert [name in message for name, message in zip(("00000030", "00000020"), passed_over, strict=True)] == [
        True
    ] * 2


def test_a_valid_checkpoint_is_never_overwritten_and_a_damaged_one_is_replaced(tmp_path):
    path = checkpoint.save(tmp_path, state(1), META | {"step": 10})
    before = path.stat().st_ino
    checkpoint.save(tmp_path, state(9), META | {"step": 10})
    assert path.stat().st_ino == before
    (path / "state.json").write_text("{}")
    checkpoint.save(tmp_path, state(9), META | {"step": 10})
    assert float(checkpoint.newest(tmp_path)[0].tensors()["model"]["weight"][0, 0]) == 9


def test_as_many_as_asked_are_kept_and_the_best_besides(tmp_path):
    for step in range(10, 80, 10):
        checkpoint.save(tmp_path, state(), META | {"step": step})
        checkpoint.prune(tmp_path, keep=3, best_step=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}" for step in (20, 50, 60, 70)
    ]


def test_a_full_disk_leaves_the_earlier_checkpoints_valid(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], check=False)
    if made.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        checkpoint.save(mount, state(), META | {"step": 10})
        large = {"model": {"weight": torch.zeros(1_000_000)}, "optimizer": {}}
        with pytest.raises(Exception, match=r"disk is full.*needs about 4,000,000 bytes"):
            checkpoint.save(mount, large, META | {"step": 20})
        assert checkpoint.newest(mount)[0].step == 10
        assert [path.name for path in mount.iterdir()] == ["step-00000010"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


SAVING = """
import sys, torch
from pathlib import Path
from lockstep.engine import checkpoint
folder = Path(sys.argv[1])
meta = {"epochs_done": 1, "steps_per_epoch": 10, "best": None}
print("ready", flush=True)
for step in range(1, 100000):
    tensors = {"model": {"weight": torch.full((50_000,), float(step))}, "optimizer": {}}
    checkpoint.save(folder, tensors, meta | {"step": step})
    checkpoint.prune(folder, 2, None)
"""


def test_kill_9_in_the_middle_of_saving_leaves_only_whole_checkpoints(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            wait_until(lambda: list(tmp_path.glob("step-*")))
            for round_number in range(8):
                time.sleep(0.05 + 0.013 * round_number)
                stop(process.pid)  # as dead as killed, for what is on disk
                folders = sorted(tmp_path.glob("step-*"))
                assert folders
                for path in folders:
                    assert verify_folder(path) == []
                    meta = checkpoint.open_verified(path)
                    assert float(meta.tensors()["model"]["weight"][0]) == meta.step
                os.kill(process.pid, signal.SIGCONT)
        finally:
            process.kill()
    checkpoint.sweep(tmp_path)
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())


def stop(pid):
    """SIGSTOP, and wait until the kernel has carried it out."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def test_a_checkpoint_of_another_format_is_refused_in_words(tmp_path):
    path = checkpoint.save(tmp_path, state(), META | {"step": 10})
    from lockstep.catalog.seal import write_manifest
    from lockstep.files import read_json, write_json

    write_json(path / "state.json", read_json(path / "state.json") | {"format": 99})
    (path / "manifest.json").unlink()
    write_manifest(path)
    with pytest.raises(CorruptRecord, match="format 99"):
        checkpoint.open_verified(path)
