"""`lockstep resume`: what changed since is refused unless it is said to be meant, and what is accepted is recorded."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import wait_until
from lockstep import cli, parameters
from lockstep.catalog import events, provenance, status
from lockstep.catalog.run import Run, claim
from lockstep.errors import UsageError
from lockstep.files import read_json, read_json_lines, write_atomically
from lockstep.orchestration import prepare
from lockstep.orchestration.start import Request, what_changed

FILE = "data: {name: 'own:samples'}\nmodel: {name: 'own:net'}\ntraining: {epochs: 2, global_batch_size: 16}\n"
CODE = """\
from pathlib import Path

import numpy as np

from lockstep.datasets import Source


def samples(seed, test_fraction):
    draw = np.random.default_rng(int(Path("samples.txt").read_text()))
    x = draw.standard_normal((80, 4)).astype(np.float32)
    return Source(x, (x[:, 0] > 0).astype(np.int64), ("no", "yes"))


def net(input_shape, num_classes):
    from torch import nn

    return nn.Linear(input_shape[0], num_classes)
"""


class Project:
    """A user's repository, in which a run was interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.catalog = folder, folder / ".catalog"
        folder.mkdir()
        (folder / ".gitignore").write_text(".catalog/\n__pycache__/\nsamples.txt\n")
        (folder / "pyproject.toml").touch()
        (folder / "parameters.yaml").write_text(FILE)
        (folder / "own.py").write_text(CODE)
        (folder / "samples.txt").write_text("1")
        self.git("init", "-q", "-b", "main")
        self.git("add", "-A")
        self.git("commit", "-qm", "one")

    def git(self, *words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, "-C", str(self.folder), *words], check=True, capture_output=True)

    def interrupted(self) -> Run:
        """As `lockstep run training.learning_rate=0.1` leaves it when it is interrupted before training."""
        wanted = parameters.read(self.folder / "parameters.yaml", ["training.learning_rate=0.1"])
        run = claim(self.catalog, "a")
        events.append(run, "created", run_id="a", tag=None, parent=None, summary={})
        events.append(run, "started", attempt=1, process=status.process_identity())
        write_atomically(run.parameters, parameters.dump(wanted))
        provenance.write(run, ["lockstep", "run", "training.learning_rate=0.1"], self.folder)
        prepare.prepare(run, wanted.data, wanted.seed, self.folder)
        events.append(run, "finished", status="interrupted", cause="SIGINT", message=None, rank=None)
        return run

    def changes(
        self, *overrides: str, asks: bool = True, accept: tuple[str, ...] = (), keep: tuple[str, ...] = ()
    ):
        """What `lockstep resume a ...` finds to have changed, or refuses."""
        run = Run(self.catalog / "a")
        request = Request(
            self.catalog,
            self.folder,
            ["lockstep", "resume", "a"],
            overrides=overrides,
            resume="a",
            asks=asks,
            accept=frozenset(accept),
            keep=frozenset(keep),
        )
        before = parameters.read(run.parameters, [])
        return what_changed(request, run, before, parameters.read(run.parameters, overrides))


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path / "project")
    monkeypatch.chdir(made.folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield made
    sys.modules.pop("own", None)


def test_where_nothing_changed_nothing_is_asked(project):
    project.interrupted()
    (project.folder / "notes.md").write_text("no program reads this")
    assert project.changes() == []


def test_changed_code_is_refused_unless_it_is_accepted(project):
    project.interrupted()
    (project.folder / "more.py").write_text("x = 1\n")
    with pytest.raises(
        UsageError, match=r"code changed since run a: .*more\.py\n.*: uv run lockstep resume a --accept code$"
    ):
        project.changes()
    with pytest.raises(UsageError):
        project.changes(accept=("data",))
    (change,) = project.changes(accept=("code",))
    assert change.kind == "code" and change.before != change.after


def test_changed_data_is_refused_unless_it_is_accepted_or_the_runs_own_is_kept(project):
    run = project.interrupted()
    (project.folder / "samples.txt").write_text("2")
    with pytest.raises(
        UsageError,
        match=r"data changed since run a: .*train .* -> .*\n.*\n.*: uv run lockstep resume a --keep data$",
    ):
        project.changes()
    (change,) = project.changes(accept=("data",))
    assert change.before["train"] == read_json(run.data / "data.json")["files"]["train"]["sha256"]
    assert change.after["train"] != change.before["train"]
    assert project.changes(keep=("data",)) == []
    assert sorted(path.name for path in project.catalog.iterdir()) == [".gitignore", ".store", "a"]


def test_a_changed_parameter_file_is_refused_unless_it_is_accepted_or_typed_or_kept(project):
    project.interrupted()
    (project.folder / "parameters.yaml").write_text(FILE.replace("epochs: 2", "epochs: 5"))
    with pytest.raises(
        UsageError, match=r"parameters\.yaml: training\.epochs: 2 -> 5\n.*\n.*--keep parameters"
    ):
        project.changes()
    (change,) = project.changes(accept=("parameters",))
    assert (change.before, change.after) == ({"training.epochs": 2}, {"training.epochs": 5})
    assert project.changes("training.epochs=9") == []
    assert project.changes(keep=("parameters",)) == []


def test_several_changes_are_all_named_at_once(project):
    project.interrupted()
    (project.folder / "samples.txt").write_text("2")
    (project.folder / "more.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match=r"--accept data --accept code"):
        project.changes()


def test_other_packages_are_named(project):
    run = project.interrupted()
    record = read_json(run.provenance)
    record["packages"]["torch"] = "1.0.0"
    run.provenance.write_text(json.dumps(record))
    with pytest.raises(
        UsageError, match=r"packages changed since run a: torch 1\.0\.0 -> .*\n.*--accept packages"
    ):
        project.changes()


def test_a_pipelines_resume_option_does_not_ask_and_tells_of_code(project):
    project.interrupted()
    (project.folder / "more.py").write_text("x = 1\n")
    (project.folder / "samples.txt").write_text("2")
    assert [change.kind for change in project.changes(asks=False)] == ["code"]


def test_what_is_refused_leaves_nothing_behind(project, capsys):
    project.interrupted()
    (project.folder / "more.py").write_text("x = 1\n")
    before = sorted(project.catalog.rglob("*"))
    assert cli.main(["resume", "a"]) == 2
    assert "--accept code" in capsys.readouterr().err
    assert sorted(project.catalog.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "because"),
    [
        (["a", "--accept", "data", "--keep", "data"], "contradict each other"),
        (["a", "epochs"], "is not key=value"),
        (["b"], "no run 'b'"),
        (["a", "--run-id", "../x"], "cannot be used"),
    ],
)
def test_bad_words_are_refused(project, capsys, words, because):
    project.interrupted()
    assert cli.main(["resume", *words]) == 2
    assert because in capsys.readouterr().err


@pytest.mark.slow
def test_accepted_changes_are_recorded_in_the_run_or_in_its_child(project):
    run = project.interrupted()
    (project.folder / "more.py").write_text("x = 1\n")

    def lockstep(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "lockstep.cli", *words]
        done = subprocess.run(command, cwd=project.folder, check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    lockstep("resume", "a", "--accept", "code")
    assert status.of(run).word == "succeeded"
    (changed,) = (event for event in events.read(run) if event["event"] == "changed")
    assert changed["attempt"] == 2 and [each["kind"] for each in changed["changes"]] == ["code"]
    (project.folder / "samples.txt").write_text("2")
    assert "--accept data" in lockstep("resume", "a", "training.epochs=4", code=2)
    lockstep("resume", "a", "training.epochs=4", "--accept", "data", "--run-id", "b")
    child = Run(project.catalog / "b")
    parent = events.read(child)[0]["parent"]
    assert parent["kind"] == "resumed" and [each["kind"] for each in parent["changes"]] == ["data"]
    own, its = (read_json(each.data / "data.json")["files"]["train"]["sha256"] for each in (run, child))
    assert own != its
    assert read_json_lines(child.metrics_file(0))[0]["step"] > 0


@pytest.mark.slow
def test_an_unchanged_killed_run_goes_on_in_its_own_folder(project):
    words = [sys.executable, "-m", "lockstep.cli", "run", "--run-id", "k", "training.epochs=4000"]
    process = subprocess.Popen(
        words, cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    run = Run(project.catalog / "k")
    wait_until(lambda: any(run.checkpoints.glob("step-*")))
    process.kill()
    process.wait()
    wait_until(lambda: status.of(run).word == "killed")
    again = subprocess.Popen(
        [sys.executable, "-m", "lockstep.cli", "resume", "k"],
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: run.metrics_file(0, 2).exists() and '"step"' in run.metrics_file(0, 2).read_text())
    os.kill(again.pid, signal.SIGINT)
    again.wait(timeout=60)
    assert [event["attempt"] for event in events.read(run) if event["event"] == "started"] == [1, 2]
    assert not any(event["event"] == "changed" for event in events.read(run))
