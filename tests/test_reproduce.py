"""A run is run again from its record alone, and the verdict says whether the same came out."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compared_runs import build, imported, recorded
from conftest import wait_until
from lockstep import cli
from lockstep.catalog import distributions, events, provenance, seal, verdicts
from lockstep.catalog.run import Run, find
from lockstep.errors import UsageError
from lockstep.files import read_json
from lockstep.orchestration import surroundings, worktree
from lockstep.orchestration.reproduce import refuse_what_cannot_be_repeated

# The program that the recorded commit holds: it takes what `lockstep run` takes, and its "training" is to copy
# the metrics of the run it repeats. Whatever else it is to do stands in behaviour.txt, which is recorded too.
PROGRAM = """\
import pathlib, shutil, signal, sys, time
words = sys.argv[1:]
behaviour = pathlib.Path("behaviour.txt").read_text().split()
if "--help" in words:
    print("" if "old" in behaviour else "--reproduces")
    sys.exit()
value = {name: words[words.index(name) + 1] for name in words if name.startswith("--")}
new = pathlib.Path(value["--catalog"]) / value["--run-id"]
old = new.parent / "a"
assert pathlib.Path(value["--parameters"]).read_bytes() == (old / "parameters.yaml").read_bytes()
if "hang" in behaviour:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    (new.parent / "hanging").write_text(str(pathlib.Path.cwd()))
    while True:
        time.sleep(0.05)
shutil.copytree(old, new)
(new / "words.txt").write_text("\\n".join(words))
if "other" in behaviour:
    file = new / "metrics" / "rank-1.jsonl"
    file.write_text(file.read_text().replace('"loss": 0.2,', '"loss": 0.2000002,'))
if "short" in behaviour:
    for file in (new / "metrics").iterdir():
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
sys.exit(1 if "short" in behaviour else 0)
"""


class Project:
    """A repository with a run in its catalog, whose patch says how the program behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.catalog = folder, folder / ".catalog"
        (folder / "src" / "lockstep").mkdir(parents=True)
        (folder / "src" / "lockstep" / "__init__.py").touch()
        (folder / "src" / "lockstep" / "cli.py").write_text(PROGRAM)
        (folder / "behaviour.txt").write_text("nothing\n")
        (folder / ".gitignore").write_text(".catalog/\n__pycache__/\n")
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("commit", "-qm", "one")

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", *who, "-C", str(self.folder), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def run(self, behaviour: str, **options: object) -> Run:
        """A run, recorded when behaviour.txt said so, uncommitted."""
        (self.folder / "behaviour.txt").write_text(behaviour + "\n")
        patch = self.git("diff", "--full-index").encode()
        (self.folder / "behaviour.txt").write_text("changed since\n")
        described = {"file": "source.patch", "bytes": len(patch), "sha256": hashlib.sha256(patch).hexdigest()}
        commit = self.git("rev-parse", "HEAD").strip()
        code = {"commit": commit, "patch": described, "tree": None, "left_out_count": 0, "folder": "."}
        here = {**provenance.surroundings(), "distributions": distributions.installed()}
        known = imported() | {"packages": ["numpy"]}
        run = build(self.catalog, "a", provenance=recorded(git=code, **here), imports=known, **options)
        run.patch.write_bytes(patch)
        events.append(run, "started", attempt=1, process={})
        events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
        return run

    def reproduce(self, *words: str) -> int:
        return cli.main(["reproduce", "a", "--catalog", str(self.catalog), *words])

    @property
    def verdict(self) -> dict:
        (found,) = verdicts.read(self.catalog)
        return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield made
    assert not list(tmp_path.glob("lockstep-*")), "a temporary folder was left"
    assert made.git("worktree", "list").count("\n") == 1, "a worktree was left"


def test_the_recorded_code_runs_again_and_the_same_bits_are_a_verdict_of_their_own(project, capsys):
    run = project.run("same")
    seal.seal(run)
    sealed = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    status_before = project.git("status", "--porcelain")
    assert project.reproduce() == 0
    verdict = project.verdict
    assert verdict["verdict"] == "same bits" and verdict["run"]["run_id"] == "a"
    assert verdict["run"]["manifest_sha256"] == hashlib.sha256(run.manifest.read_bytes()).hexdigest()
    new = find(project.catalog, verdict["reruns"][0]["run_id"])
    words = (new.path / "words.txt").read_text().split("\n")
    assert words[words.index("--reproduces") + 1] == str(run.path)
    assert sealed == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert project.git("status", "--porcelain") == status_before
    assert "verdict: same bits" in capsys.readouterr().out


def test_a_run_that_parts_is_said_to_with_step_rank_and_cause(project, capsys):
    project.run("other")
    assert project.reproduce() == 1
    verdict = project.verdict
    assert verdict["verdict"] == "parted"
    (rerun,) = verdict["reruns"]
    assert (rerun["first"]["step"], rerun["first"]["ranks"], rerun["first"]["quantity"]) == (10, [1], "loss")
    assert rerun["cause"]["kind"] == "non-determinism"
    assert project.reproduce("--tolerance", "1e-5") == 0
    assert project.reproduce("--tolerance", "1e-7") == 1


def test_a_repetition_that_ends_early_is_no_reproduction(project):
    project.run("short")
    assert project.reproduce() == 1
    assert project.verdict["verdict"] == "ended otherwise"


def test_code_of_a_time_that_knew_no_reproductions_runs_all_the_same(project, capsys):
    project.run("old")
    assert project.reproduce() == 0
    new = find(project.catalog, project.verdict["reruns"][0]["run_id"])
    words = (new.path / "words.txt").read_text()
    assert "--reproduces" not in words and "distributed.threads_per_rank=1" in words
    assert "knows no --reproduces" in capsys.readouterr().out


def test_to_prove_a_run_it_is_run_twice_with_fingerprints_of_every_step(project):
    project.run("same")
    assert project.reproduce("--prove", "--json") == 0
    verdict = project.verdict
    assert len(verdict["reruns"]) == 2 and verdict["between_reruns"]["verdict"] == "same bits"
    for each in verdict["reruns"]:
        words = (project.catalog / each["run_id"] / "words.txt").read_text()
        assert "training.digest_every=1" in words


def test_drift_is_named_before_anything_is_run(project, capsys, monkeypatch):
    run = project.run("same")
    record = read_json(run.provenance)
    record["packages"]["torch"] = "1.0.0"
    record["machine"]["processor_features"] = ["abacus"]
    run.provenance.write_text(json.dumps(record))
    assert project.reproduce("--packages", "current") == 0
    said = capsys.readouterr().out
    assert said.index("packages.torch: 1.0.0 then") < said.index("verdict")
    assert "machine.processor_features: abacus then" in said
    # With other packages and no uv.lock there is nothing to run it with, unless that is asked for.
    assert project.reproduce() == 2
    assert "the run has no uv.lock" in capsys.readouterr().err


def _no_commit(run: Run, record: dict) -> None:
    record["git"] = {"absent": "no git"}


def _patch_switched_off(run: Run, record: dict) -> None:
    record["git"] |= {"patch": None, "patch_absent": "larger than 10 MB"}


def _patch_cut_off(run: Run, record: dict) -> None:
    run.patch.write_bytes(run.patch.read_bytes()[:-5])


def _unknown_commit(run: Run, record: dict) -> None:
    record["git"]["commit"] = "e" * 40


def _patch_of_another_state(run: Run, record: dict) -> None:
    content = run.patch.read_bytes().replace(b"-nothing", b"-anything")
    run.patch.write_bytes(content)
    record["git"]["patch"]["sha256"] = hashlib.sha256(content).hexdigest()


def _other_tree(run: Run, record: dict) -> None:
    record["git"]["tree"] = "d" * 40


def _code_outside_git(run: Run, record: dict) -> None:
    run.parameters.write_text(run.parameters.read_text().replace("name: mlp", "name: 'elsewhere.nets:net'"))


@pytest.mark.parametrize(
    ("spoil", "because"),
    [
        (_no_commit, "names no commit"),
        (_patch_switched_off, "larger than 10 MB"),
        (_patch_cut_off, "not the one that was recorded"),
        (_unknown_commit, "is not in"),
        (_patch_of_another_state, "cannot be applied"),
        (_other_tree, "do not make the code that was recorded"),
        (_code_outside_git, "neither in the recorded commit nor in its patch"),
    ],
)
def test_what_cannot_be_started_is_refused_and_leaves_nothing(project, capsys, spoil, because):
    run = project.run("same")
    record = read_json(run.provenance)
    spoil(run, record)
    run.provenance.write_text(json.dumps(record))
    assert project.reproduce() == 2
    assert because in capsys.readouterr().err
    assert sorted(path.name for path in project.catalog.iterdir()) == ["a"]


def test_a_record_that_is_not_what_was_sealed_is_not_run(project, capsys):
    run = project.run("same")
    seal.seal(run)
    run.parameters.write_text(run.parameters.read_text() + "# and more\n")
    assert project.reproduce() == 2
    assert "parameters.yaml" in capsys.readouterr().err


def test_attempts_on_different_code_are_not_run_as_one(project):
    run = project.run("same")
    record = read_json(run.provenance)
    (project.folder / "more.py").write_text("x = 1\n")
    project.git("add", "-A")
    project.git("commit", "-qm", "two")
    record["git"] |= {"commit": project.git("rev-parse", "HEAD").strip(), "patch": None}
    (run.path / "provenance.attempt-2.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="attempt 2"):
        refuse_what_cannot_be_repeated(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_and_removes_the_worktree(project, number, tmp_path):
    project.run("hang")
    command = [sys.executable, "-m", "lockstep.cli", "reproduce", "a", "--catalog", str(project.catalog)]
    process = subprocess.Popen(
        command, cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    hanging = project.catalog / "hanging"
    wait_until(lambda: hanging.exists() and hanging.read_text())
    place = Path(hanging.read_text())
    assert place.is_dir() and place.is_relative_to(tmp_path)
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    assert not place.exists()


def test_a_worktree_that_a_kill_left_goes_with_the_next_reproduction(project, tmp_path):
    left = tmp_path / f"{worktree.PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    project.git("worktree", "add", "--quiet", "--detach", str(left / "code"))
    project.run("same")
    assert project.reproduce() == 0
    assert not left.exists()


def test_variables_that_steer_arithmetic_are_the_recorded_ones(project, monkeypatch, tmp_path):
    run = project.run("same")
    record = read_json(run.provenance)
    record["environment"] = {"OMP_NUM_THREADS": "3", "MKL_CBWR": "evil; value", "LD_PRELOAD": "evil.so"}
    run.provenance.write_text(json.dumps(record))
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = surroundings.environment(run, worktree.Recreated(tmp_path, project.folder, project.folder))
    assert found["OMP_NUM_THREADS"] == "3"
    assert not {"MKL_CBWR", "ATEN_CPU_CAPABILITY", "LD_PRELOAD"} & found.keys()
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(project.folder / "src")


def test_packages_are_held_against_the_recorded_lock(project):
    run = project.run("same")
    assert surroundings.other_packages(run) == []
    (run.path / "uv.lock").write_text('[[package]]\nname = "numpy"\nversion = "0.0.1"\n')
    assert surroundings.other_packages(run)[0].startswith("numpy 0.0.1 in uv.lock")


@pytest.mark.slow
def test_a_real_run_with_own_uncommitted_code_has_the_same_bits_again(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    (folder / ".gitignore").write_text(".catalog/\n__pycache__/\n")
    (folder / "parameters.yaml").write_text(
        "data: {name: synthetic, num_samples: 200, input_size: 8}\nmodel: {name: 'nets:net'}\n"
        "training: {epochs: 2, global_batch_size: 32, digest_every: 5}\n"
    )
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "add", "-A"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=folder, check=True)
    (folder / "nets.py").write_text(
        "from torch import nn\n\n\ndef net(input_shape, num_classes, *, width: int = 16):\n"
        "    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Linear(width, num_classes))\n"
    )

    def lockstep(*words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "lockstep.cli", *words]
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    lockstep("run", "--run-id", "a", "--tag", "first")
    (folder / "nets.py").unlink()  # only the recorded patch holds it now
    assert "verdict: same bits" in lockstep("reproduce", "a")
    new = find(folder / ".catalog", "latest")
    assert events.read(new)[0]["parent"]["run_id"] == "a"
    assert events.read(new)[0]["parent"]["kind"] == "reproduced"
    assert seal.verify_seal(new) == []
    lockstep("diff", "a", new.run_id)
    assert not list((folder / ".git").glob("worktrees/*"))
    shutil.rmtree(folder / ".git")
    assert "repository" in lockstep("reproduce", "a", status=2)
