"""What a repetition needs beside the recorded code: data that git ignores, files that no patch holds, the lock file."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockstep import parameters
from lockstep.catalog import events, status
from lockstep.catalog.compare import inputs
from lockstep.catalog.compare.code import Missing
from lockstep.catalog.run import Run, claim, find
from lockstep.errors import UsageError
from lockstep.files import read_json, sha256_of, write_json
from lockstep.orchestration import inputs as taken
from lockstep.orchestration import left_behind, steps, surroundings, worktree
from lockstep.orchestration.display import Display
from lockstep.orchestration.session import Session, active
from repositories import git, repository

TEXT = ("data=text", "data.context_length=8", "model=gpt")


def prepared(run: Run, wanted: parameters.Parameters, folder: Path, repeats: Run | None = None) -> dict:
    descriptor = status.hold(run)
    events.append(run, "created", run_id=run.run_id, tag=None, parent=None, summary={})
    value = wanted.to_value()
    with active(Session(run, Display(quiet=True), folder, repeats=repeats)):
        steps.prepare_data(value["seed"], value["data"])
    status.release(run, descriptor)
    return read_json(run.data / "data.json")


@pytest.mark.parametrize("where", ["store", "the run's own folder"])
def test_data_that_git_does_not_hold_are_those_that_were_recorded(tmp_path, where):
    (tmp_path / "here" / "data" / "text").mkdir(parents=True)
    (tmp_path / "here" / "data" / "text" / "a.txt").write_text("the quick brown fox\n" * 200)
    (tmp_path / "worktree").mkdir()
    wanted = parameters.read(None, [*TEXT])
    a, b, c = (claim(tmp_path / "catalog", name) for name in "abc")
    before = prepared(a, wanted, tmp_path / "here")
    if where != "store":
        for file in (tmp_path / "catalog" / ".store").iterdir():
            if file.is_file():
                file.unlink()
    with pytest.raises(UsageError, match="found no file"):
        taken.require(wanted, tmp_path / "worktree")
    with pytest.raises(UsageError, match="found no file"):
        prepared(c, wanted, tmp_path / "worktree")
    taken.require(wanted, tmp_path / "worktree", repeated=a)
    assert prepared(b, wanted, tmp_path / "worktree", repeats=a) == before
    assert sha256_of(b.data / "train.safetensors") == before["files"]["train"]["sha256"]
    assert any("as they were recorded" in str(event.get("message")) for event in events.read(b))


def test_what_the_patch_leaves_out_is_brought_where_its_bytes_are_still_here(tmp_path):
    top, root = tmp_path / "top", tmp_path / "root"
    (top / "data").mkdir(parents=True)
    root.mkdir()
    (top / "data" / "same.bin").write_bytes(b"same")
    (top / "other.bin").write_bytes(b"other")
    (tmp_path / "outside").write_bytes(b"out")
    digest = sha256_of(top / "data" / "same.bin")
    missing = [
        Missing("data/same.bin", 4, digest, True),
        Missing("other.bin", 5, digest, True),
        Missing("gone.bin", 5, digest, False),
        Missing("../outside", 3, sha256_of(tmp_path / "outside"), False),
    ]
    lacking = worktree.bring(missing, top, root)
    assert [each.path for each in lacking] == ["other.bin", "gone.bin", "../outside"]
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["same.bin"]


def test_a_lock_file_that_git_ignores_is_put_beside_the_code_and_nothing_is_said_to_be_absent(tmp_path):
    code = repository(tmp_path / "code", pyproject__toml="", __gitignore="uv.lock\n")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "uv.lock").write_text('[[package]]\nname = "numpy"\nversion = "2.0"\n')
    surroundings.bring_lock(run, worktree.Recreated(tmp_path, code, code))
    assert (code / "uv.lock").read_text() == (run.path / "uv.lock").read_text()
    assert git(code, "status", "--porcelain") == b""
    without = Run(tmp_path / "without")
    without.path.mkdir()
    write_json(run.provenance, {"uv_lock": {"sha256": "a" * 64}})
    write_json(without.provenance, {"uv_lock": None})
    assert not [each for each in inputs.environment(run, without) if each.key.startswith("uv_lock.numpy")]


def test_what_else_was_on_the_path_stays_there_after_the_recorded_code(tmp_path, monkeypatch):
    code = repository(tmp_path / "code", nets__py="")
    (code / "src").mkdir()
    monkeypatch.chdir(code)
    monkeypatch.setenv("PYTHONPATH", f"{code / 'src'}:{tmp_path / 'lib'}")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    place = worktree.Recreated(tmp_path, tmp_path / "root", tmp_path / "root")
    path = surroundings.environment(run, place)["PYTHONPATH"].split(":")
    assert path[-1] == str(tmp_path / "lib") and str(code / "src") not in path


def test_a_module_from_elsewhere_that_changed_since_is_named(tmp_path):
    helper = tmp_path / "lib" / "helper.py"
    helper.parent.mkdir()
    helper.write_text("W = 8\n")
    run = Run(tmp_path / "run")
    run.path.mkdir()
    modules = {"helper": {"file": str(helper), "sha256": sha256_of(helper)}}
    write_json(run.path / "imports.json", {"modules": modules})
    assert surroundings.other_modules(run, tmp_path / "code") == []
    helper.write_text("W = 9\n")
    (said,) = surroundings.other_modules(run, tmp_path / "code")
    assert "helper.py holds other code" in said


OWN = """\
import numpy as np
from lockstep.datasets import Source


def table(seed, test_fraction):
    rows = np.loadtxt("data/x.csv", delimiter=",", dtype=np.float32)
    return Source(rows[:, :4], rows[:, -1].astype(np.int64), ["a", "b"])
"""


@pytest.mark.slow
def test_a_run_whose_data_git_ignores_is_repeated(tmp_path):
    rows = "".join(f"{n % 7},{n % 5},{n % 3},1,{n % 2}\n" for n in range(200))
    project = repository(
        tmp_path / "project",
        own__py=OWN,
        pyproject__toml="",
        __gitignore=".catalog/\n__pycache__/\ndata/\nuv.lock\n",
    )
    (project / "data").mkdir()
    (project / "data" / "x.csv").write_text(rows)
    (project / "uv.lock").write_text('[[package]]\nname = "not-installed-here"\nversion = "1.0"\n')
    (project / "large.bin").write_bytes(bytes(2 << 20))

    def lockstep(*words: str) -> str:
        command = [sys.executable, "-m", "lockstep.cli", *words]
        done = subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ("training.epochs=1", "distributed.world_size=1", "distributed.strategy=single")
    said = lockstep("run", "--run-id", "a", "data=own:table", *small)
    assert "leaves out 1 changed file: large.bin (above 1 MB)" in " ".join(said.split())
    said = lockstep("reproduce", "a")
    assert "verdict: same bits" in said and "absent" not in said
    new = find(project / ".catalog", "latest")
    assert (
        read_json(new.provenance)["uv_lock"] == read_json(project / ".catalog/a/provenance.json")["uv_lock"]
    )


READS = """
from pathlib import Path
from torch import nn


def net(input_shape, num_classes):
    width = int((Path(__file__).parent / "data" / "s.txt").read_text())
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, num_classes))
"""


@pytest.mark.slow
def test_a_file_that_only_the_model_reads_and_git_ignores_is_named_in_one_line(tmp_path):
    project = repository(
        tmp_path / "project",
        nets__py=READS,
        pyproject__toml="",
        __gitignore=".catalog/\n__pycache__/\ndata/\n",
    )
    (project / "data").mkdir()
    (project / "data" / "s.txt").write_text("16")

    def lockstep(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lockstep.cli", *words]
        return subprocess.run(command, cwd=project, check=False, capture_output=True, text=True)

    small = ("training.epochs=1", "distributed.world_size=1", "distributed.strategy=single", "model=nets:net")
    data = ("data=synthetic", "data.num_samples=200", "data.input_size=8")
    made = lockstep("run", "--run-id", "a", *data, *small)
    assert made.returncode == 0, made.stdout + made.stderr
    done = lockstep("reproduce", "a")
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "Traceback" not in said and "to continue" not in said, said
    (line,) = [line for line in said.splitlines() if "s.txt" in line]
    assert str(project / "data" / "s.txt") in line and "git" in line


def test_only_a_missing_file_of_the_repeated_code_is_explained(tmp_path):
    (tmp_path / "code" / "sub").mkdir(parents=True)
    run = Run(tmp_path / "a")
    run.path.mkdir()
    write_json(run.provenance, {"cwd": "/home/me/x/sub", "git": {"folder": "sub"}})
    folder, gone = tmp_path / "code" / "sub", tmp_path / "code" / "data" / "s.txt"
    error = FileNotFoundError(2, "No such file or directory", str(gone))
    said = str(left_behind.explained(error, run, folder))
    assert "reads data/s.txt" in said and "/home/me/x/data/s.txt" in said and "\n" not in said
    assert left_behind.explained(error, None, folder) is None
    assert left_behind.explained(FileNotFoundError(2, "No such file", "/elsewhere"), run, folder) is None
    assert left_behind.explained(ValueError("bad"), run, folder) is None
