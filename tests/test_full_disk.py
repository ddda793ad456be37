"""A full disk is said in one line wherever it is met: the path, the bytes, the cause "disk full", no traceback."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Command
from lockstep import files, full_disk, parameters
from lockstep.catalog import events, status, store
from lockstep.catalog.run import Run
from lockstep.datasets import Source
from lockstep.engine.metrics import Metrics
from lockstep.errors import RunFailed
from lockstep.orchestration import prepare


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], check=False)
    if made.returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def filled(place: Path, left: int) -> None:
    """Fill a disk, but for so many bytes."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "filler").write_bytes(b"x" * max(free - left, 0))


def source(samples: int) -> Source:
    return Source(np.ones((samples, 100), np.float32), np.arange(samples) % 2, ["a", "b"])


def run_on(place: Path) -> Run:
    run = Run(place / "r")
    run.data.mkdir(parents=True)
    return run


WORDS = r"the disk is full: {} needs about [\d,]+ bytes and [\d,]+ bytes are free\. Make room and continue the run"


def test_preparing_data_on_a_full_disk_names_the_split_and_its_bytes(small_disk):
    run = run_on(small_disk)
    with pytest.raises(RunFailed, match=WORDS.format(r"\S+/r/data/train\.safetensors")) as found:
        prepare._write(run, source(2000), parameters.read(None, ["data=synthetic"]).data, 0)
    assert found.value.cause == "disk full"
    assert list(run.data.iterdir()) == [], "nothing half-written is left"


def test_a_copy_out_of_the_store_on_a_full_disk_names_what_it_is_for(small_disk, tmp_path):
    file = tmp_path / "made"
    file.write_bytes(b"x" * 300_000)
    digest = store.put(tmp_path, file)
    with pytest.raises(RunFailed, match=WORDS.format(r"\S+/train\.safetensors")):
        filled(small_disk, 100_000)
        store.link(tmp_path, digest, small_disk / "train.safetensors")  # another disk: no link, but a copy
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_line_of_metrics_that_finds_no_room_is_not_lost_in_silence(small_disk):
    metrics = Metrics(small_disk / "rank-0.jsonl")
    filled(small_disk, 0)
    with pytest.raises(RunFailed, match=r"rank-0\.jsonl needs about [\d,]+ bytes") as found:
        for step in range(100):
            metrics.write("step", step=step, text="x" * 1000)
    assert found.value.cause == "disk full"


def test_an_event_that_finds_no_room_names_the_history(small_disk):
    run = run_on(small_disk)
    events.append(run, "created", run_id="r")
    filled(small_disk, 0)
    with pytest.raises(OSError, match=r"events\.jsonl") as found:
        for _ in range(100):
            events.append(run, "warning", message="x" * 1000)
    assert full_disk.explained(found.value).cause == "disk full"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            "the disk is full: /x/y could not be written",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "the quota allows no more"),
        (OSError(errno.EFBIG, "File too large", b"/x/y"), "see ulimit -f"),
        (RuntimeError("Error while serializing: I/O error: ... (os error 28)"), "the disk is full: a file"),
        (
            RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0"),
            "the disk is full",
        ),
    ],
)
def test_whoever_meets_it_it_is_said_alike(error, words):
    found = full_disk.explained(error)
    assert found.cause == "disk full" and words in str(found)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), ValueError("28"), RunFailed("x"), RuntimeError("y")]
)
def test_no_other_error_is_taken_for_it(error):
    assert full_disk.explained(error) is None


def test_torch_s_own_error_is_known(small_disk):
    filled(small_disk, 50_000)
    with (
        pytest.raises(RunFailed, match=r"model\.pt needs about 400,000 bytes"),
        full_disk.needing(small_disk / "model.pt", 400_000),
    ):
        torch.save(torch.ones(100_000), small_disk / "model.pt")


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"


def test_a_limit_on_the_size_of_files_is_said_as_such(tmp_path):
    code = (
        f"{LIMITED}\nfrom pathlib import Path\nfrom lockstep.full_disk import needing\n"
        "with needing(Path('big'), 50_000):\n    Path('big').write_bytes(bytes(50_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert b"big needs about 50,000 bytes, and a file may not be as large here (see ulimit -f)" in done.stderr


JOB = ("data=synthetic", "data.input_size=64", "training.epochs=1", "distributed.world_size=1")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("samples", "step", "limit"), [(4000, "prepare_data", 100_000), (60, "train", 150_000)]
)
def test_a_run_that_may_write_no_more_ends_in_one_line(tmp_path, samples, step, limit):
    command = Command(tmp_path / "catalog")
    options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    words = (*JOB, f"data.num_samples={samples}", "model.hidden_sizes=[256,256]")
    output = command.run("--run-id", "r", *words, status=1, **options)
    assert re.search(r"needs about [\d,]+ bytes, and a file may not be as large", output)
    assert "Traceback" not in output and f"✗ {step}" in output
    assert status.of(Run(command.catalog / "r")).cause == "disk full"


def test_a_file_that_was_to_be_replaced_is_named_alone(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(files.Path, "replace", full)
    with pytest.raises(OSError, match="No space left") as found:
        files.write_atomically(tmp_path / "manifest.json", "{}")
    assert str(found.value).endswith("manifest.json'") and "None" not in str(found.value)


def test_what_is_free_is_said_in_bytes_and_does_not_contradict_that_it_is_full(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run_log.json"))
    for needed in (None, 1):
        said = str(full_disk.explained(error, needed=needed, then="try again"))
        assert re.search(
            r": the [\d,]+ bytes that are free are not enough\. Make room and try again$", said
        ), said
    said = str(full_disk.explained(error, needed=1 << 60))
    assert re.search(r"needs about [\d,]+ bytes and [\d,]+ bytes are free\.", said)
