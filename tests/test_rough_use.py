"""Rough use: whole groups signalled, folders moved, files damaged, terminals of all kinds."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios

import pytest

from conftest import ROOT, descendants, needs_torch, wait_until
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_seal
from lockstep.cli import main
from lockstep.errors import Interrupted
from lockstep.files import read_json
from lockstep.orchestration.display import Display
from lockstep.orchestration.session import Session, active
from marks import slow

JOB = ("data=synthetic", "data.num_samples=400", "training.global_batch_size=32")


def run_of(command, run_id):
    return Run((command.catalog / run_id).resolve())


@pytest.fixture
def killed(command):
    """A run whose launcher was killed in the middle of training."""
    process = command.start_and_wait_for_step(
        "r", 30, *JOB, "training.epochs=12", "checkpoint.every_steps=10"
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return run_of(command, "r")


@pytest.mark.parametrize("number", [slow(signal.SIGTERM), slow(signal.SIGHUP)])
def test_a_signal_to_the_whole_group_is_a_stop_in_order(command, number):
    process = command.start_and_wait_for_step("r", 20, *JOB, "training.epochs=3000")
    os.killpg(process.pid, number)  # as timeout(1), a batch system or a closed terminal sends it
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    found = status.of(run_of(command, "r"))
    assert (found.word, found.cause) == ("interrupted", signal.Signals(number).name)


@pytest.mark.slow
def test_a_renamed_folder_can_be_resumed(command, killed):
    killed.path.rename(killed.path.with_name("renamed"))
    command.run("--resume", "renamed")
    assert status.of(run_of(command, "renamed")).word == "succeeded"
    assert verify_seal(run_of(command, "renamed")) == []


@pytest.mark.parametrize(
    "name",
    ["run_log.json", "distributed.json", "data/data.json"],
)
@pytest.mark.slow
def test_a_damaged_file_of_the_pipeline_is_made_again(command, killed, name):
    (killed.path / name).write_text('{"run_id": "x", "files": {}}')
    command.run("--resume", "r")
    assert status.of(killed).word == "succeeded"


@pytest.mark.slow
def test_a_death_before_the_seal_is_made_good_by_resume(command):
    command.run("--run-id", "r", *JOB, "training.epochs=1")
    run = run_of(command, "r")
    lines = run.events.read_bytes().splitlines(keepends=True)
    run.events.write_bytes(b"".join(lines[:-1]))  # as if it had died after "finished"
    run.manifest.unlink()
    assert "sealed" in command.run("--resume", "r")
    assert verify_seal(run) == []


@pytest.mark.slow
def test_a_closed_standard_output_does_not_end_the_training(command):
    words = [
        sys.executable,
        str(ROOT / "pipeline.py"),
        "--catalog",
        str(command.catalog),
        "--run-id",
        "r",
        *JOB,
    ]
    line = " ".join(f"'{word}'" for word in [*words, "training.epochs=1"])
    assert (
        subprocess.run(["sh", "-c", f"{line} >&- 2>&-"], check=False, cwd=ROOT, timeout=100).returncode == 0
    )
    assert status.of(run_of(command, "r")).word == "succeeded"


@pytest.mark.slow
def test_an_ascii_terminal_sees_every_line(command):
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    output = command.run("--run-id", "r", *JOB, "training.epochs=1", env=environment)
    assert "+ prepare_data" in output
    assert "+ report" in output


OWN = """
import numpy as np
from lockstep.datasets import Source

def table(seed, test_fraction, *, file: str = "rows.csv"):
    rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Source(rows[:, :-1].copy(), rows[:, -1].astype(np.int64), ["a", "b"])
"""


@pytest.mark.slow
def test_a_dataset_of_ones_own_reads_the_file_that_is_there_now(command, tmp_path):
    (tmp_path / "own_data.py").write_text(OWN)
    for count in (60, 90):
        rows = [f"{i % 7},{i % 5},{i % 2}" for i in range(count)]
        (tmp_path / "rows.csv").write_text("\n".join(rows))
        words = ("data=own_data:table", "training.epochs=1", "training.global_batch_size=8")
        command.run("--run-id", f"r{count}", *words, cwd=tmp_path)
        splits = read_json(command.catalog / f"r{count}" / "distributed.json")["splits"]
        assert sum(splits.values()) == count


@pytest.mark.slow
def test_a_child_with_another_seed_says_that_its_test_split_was_seen(command):
    command.run("--run-id", "r", *JOB, "training.epochs=1")
    output = command.run("--resume", "r", "--run-id", "child", "seed=7", "training.epochs=2")
    assert "may stand in this run's validation and test splits" in output
    assert any(event["event"] == "warning" for event in events.read(run_of(command, "child")))


@pytest.mark.slow
def test_a_model_that_the_promise_does_not_cover_says_so(command, tmp_path):
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, num_classes))\n"
    )
    output = command.run("--run-id", "r", *JOB, "model=normed:net", "training.epochs=1", cwd=tmp_path)
    assert "looks at all samples of a pass together" in output
    assert "draws by rank" in output


@pytest.mark.slow
def test_a_folder_that_was_copied_while_running_is_its_own_run(command):
    process = command.start_and_wait_for_step("r", 20, *JOB, "training.epochs=3000")
    shutil.copytree(command.catalog / "r", command.catalog / "copy", ignore=shutil.ignore_patterns(".live"))
    below = descendants(process.pid)
    assert below
    assert status.of(run_of(command, "copy")).word != "running"
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


@pytest.mark.slow
def test_a_run_under_nohup_outlives_the_terminal(command):
    process = command.start(
        "--run-id", "r", *JOB, "training.epochs=60",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    metrics = command.catalog / "r" / "metrics" / "rank-0.jsonl"
    wait_until(lambda: metrics.exists() and '"kind": "step"' in metrics.read_text())
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "SIGHUP" not in output


def test_a_terminal_shows_progress_and_a_closing_table_however_narrow_it_is(command):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    words = ["--catalog", str(command.catalog), "--run-id", "r", *JOB, "training.epochs=20"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline.py"), *words], cwd=ROOT, stdin=writer, stdout=writer, stderr=writer,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(writer)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while more := os.read(reader, 65536):
            seen += more
    os.close(reader)
    assert process.wait(timeout=100) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
    assert re.search(r"[━╸╺] *.*(epoch [0-9]+/20|step [0-9]+/180)", text)  # a bar, and what it tells
    results = read_json(run_of(command, "r").results)
    accuracy = results["evaluation"]["final"]["test"]["accuracy"]
    assert f"{accuracy:.4f}" in text
    assert f"{results['training']['samples_per_second']:,.0f}" in text
    assert "…" not in text.partition("train acc")[2]


def test_a_signal_is_remembered_where_python_drops_what_is_raised(tmp_path):
    run = Run(tmp_path)
    with active(Session(run, Display(quiet=True), tmp_path)) as session:
        with contextlib.suppress(Interrupted):  # as in an object's __del__
            signal.raise_signal(signal.SIGINT)
        assert session.stop_signal == "SIGINT"  # before the next step, and by the ranks, it is looked at


@needs_torch
@pytest.mark.parametrize("words", [("--run-id", ""), ("--resume", ""), ("--catalog", __file__)])
def test_names_that_are_none_are_refused(words, tmp_path, capsys):
    assert main(["run", "--catalog", str(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("allowed" in said or "cannot be used" in said)
    assert not list(tmp_path.iterdir())
