import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep.catalog import git as git_module
from lockstep.catalog import provenance, uncommitted
from lockstep.catalog.git import without_credentials
from lockstep.catalog.run import Run
from lockstep.files import sha256_of

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


@pytest.fixture(autouse=True)
def plain_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def git(folder, *arguments, check=True):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, check=check, env=ENVIRONMENT).stdout


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


@pytest.fixture
def committed(project):
    (project / ".gitignore").write_text(".catalog/\nignored\n")
    (project / "code.py").write_text("one\ntwo\n")
    (project / "gone.py").write_text("to be removed\n")
    (project / "binary").write_bytes(bytes(range(256)))
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    return project


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "project" / ".catalog" / "run-1"
    folder.mkdir(parents=True)
    return Run(folder)


def write(run, folder, **options):
    record = provenance.write(run, ["pipeline.py", "training.epochs=1"], folder, **options)
    assert json.loads(run.provenance.read_text()) == record
    return record


def snapshot(repository):
    """Every file below .git, by name, content and time."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (repository / ".git").rglob("*")
        if path.is_file()
    }


def contents(folder):
    return {
        str(path.relative_to(folder)): (os.readlink(path) if path.is_symlink() else path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if (path.is_file() or path.is_symlink()) and not {".git", ".catalog"} & set(path.parts)
    }


def change_everything(folder):
    (folder / "code.py").write_text("one\nstaged\n")
    git(folder, "add", "code.py")
    (folder / "code.py").write_text("one\nunstaged\n")
    (folder / "gone.py").unlink()
    (folder / "binary").write_bytes(bytes(reversed(range(256))))
    (folder / "new folder").mkdir()
    (folder / "new folder" / "näme\twith tab").write_bytes(b"\0untracked\xff")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("code.py")
    (folder / "ignored").write_text("never recorded\n")


@needs_git
def test_the_patch_applied_to_the_commit_gives_the_code_that_ran(committed, run, tmp_path):
    change_everything(committed)
    record = write(run, committed)
    assert record["git"]["commit"] == git(committed, "rev-parse", "HEAD").decode().strip()
    assert record["git"]["branch"] == "main"
    assert record["git"]["dirty"] is True
    assert record["git"]["patch"]["sha256"] == sha256_of(run.patch)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(committed), str(clone))
    git(clone, "checkout", "--quiet", record["git"]["commit"])
    git(clone, "apply", "--index", str(run.patch))
    expected = contents(committed)
    del expected["ignored"]
    assert contents(clone) == expected
    assert os.access(clone / "run.sh", os.X_OK)
    assert git(clone, "write-tree").decode().strip() == record["git"]["tree"]


@needs_git
def test_the_users_repository_is_not_touched_in_any_way(committed, run):
    change_everything(committed)
    before = snapshot(committed)
    write(run, committed)
    assert snapshot(committed) == before


@needs_git
def test_a_clean_tree_has_no_patch(committed, run):
    record = write(run, committed)["git"]
    assert record["dirty"] is False
    assert record["patch"] is None
    assert not run.patch.exists()
    assert record["tree"] == git(committed, "rev-parse", "HEAD^{tree}").decode().strip()


@needs_git
def test_a_repository_without_any_commit_has_a_patch_onto_nothing(project, run, tmp_path):
    (project / "code.py").write_text("first\n")
    record = write(run, project)["git"]
    assert (record["commit"], record["branch"], record["dirty"]) == (None, "main", True)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    git(fresh, "init", "--quiet")
    git(fresh, "apply", str(run.patch))
    assert (fresh / "code.py").read_text() == "first\n"


@needs_git
def test_the_catalog_is_never_part_of_the_code(project, run):
    (run.path / "metrics.jsonl").write_text("{}\n")  # and nothing ignores .catalog here
    (project / "code.py").write_text("first\n")
    record = write(run, project)["git"]
    assert record["untracked"] == 1
    assert b"metrics" not in run.patch.read_bytes()


@needs_git
def test_a_command_from_a_folder_below_records_the_whole_repository(committed, run):
    (committed / "below").mkdir()
    (committed / "code.py").write_text("changed\n")
    write(run, committed / "below")
    assert b"+changed" in run.patch.read_bytes()


@needs_git
def test_large_files_are_left_out_and_named(committed, run):
    (committed / "large").write_bytes(b"x" * (uncommitted.UNTRACKED_FILE_BYTES + 1))
    (committed / "small").write_text("x\n")
    record = write(run, committed)["git"]
    size = uncommitted.UNTRACKED_FILE_BYTES + 1
    (left,) = record["left_out"]
    assert (left["path"], left["bytes"], left["reason"], left["tracked"]) == (
        "large",
        size,
        "above 1 MB",
        False,
    )
    assert left["sha256"] == sha256_of(committed / "large")
    assert record["dirty"] is True
    assert b"small" in run.patch.read_bytes()


@needs_git
def test_the_patch_can_be_switched_off(committed, run):
    (committed / "code.py").write_text("secret\n")
    record = write(run, committed, with_patch=False)["git"]
    assert record["patch_absent"] == "switched off"
    assert record["commit"] and not run.patch.exists()


@needs_git
def test_no_program_that_the_repository_names_is_run(committed, run, tmp_path):
    trap = tmp_path / "trap"
    sprung = tmp_path / "sprung"
    trap.write_text(f"#!/bin/sh\necho $0 $* >> {sprung}\ncat\n")
    trap.chmod(0o755)
    for key in (
        "core.fsmonitor",
        "core.pager",
        "core.editor",
        "core.sshCommand",
        "credential.helper",
        "diff.external",
        "diff.trap.command",
        "diff.trap.textconv",
        "filter.trap.clean",
        "filter.trap.smudge",
        "filter.trap.process",
    ):
        git(committed, "config", key, str(trap))
    git(committed, "config", "filter.trap.required", "true")
    (committed / ".git" / "info" / "attributes").write_text("* filter=trap diff=trap\n")
    hooks = committed / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "pre-commit", "fsmonitor-watchman", "reference-transaction"):
        shutil.copy(trap, hooks / name)
    (committed / "code.py").write_text("changed\n")
    (committed / "new.py").write_text("new\n")
    record = write(run, committed)["git"]
    assert not sprung.exists(), sprung.read_text()
    assert {"code.py", "new.py"} <= {each["path"] for each in record["left_out"]}, record
    assert all("filter" in each["reason"] for each in record["left_out"])


@needs_git
def test_settings_of_the_user_do_not_change_the_patch(committed, run, tmp_path):
    for key, value in (
        ("diff.noprefix", "true"),
        ("diff.mnemonicPrefix", "true"),
        ("color.ui", "always"),
        ("diff.renames", "copies"),
        ("core.quotePath", "false"),
        ("diff.context", "0"),
    ):
        git(committed, "config", key, value)
    (committed / "gone.py").rename(committed / "moved.py")
    write(run, committed)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(committed), str(clone))
    git(clone, "apply", str(run.patch))
    assert (clone / "moved.py").exists() and not (clone / "gone.py").exists()


@needs_git
def test_a_change_within_the_same_tick_as_the_index_is_seen(committed, run):
    time = (committed / ".git" / "index").stat().st_mtime_ns
    (committed / "code.py").write_text("ONE\nTWO\n")  # as long as before
    os.utime(committed / "code.py", ns=(time, time))
    assert write(run, committed)["git"]["dirty"] is True


@needs_git
@pytest.mark.parametrize("state", ["worktree", "conflict", "submodule"])
def test_unusual_states_of_a_repository_are_recorded(committed, run, tmp_path, state):
    folder = committed
    if state == "worktree":
        folder = tmp_path / "tree"
        git(committed, "worktree", "add", "--quiet", str(folder), "-b", "side")
        (folder / "code.py").write_text("changed\n")
    elif state == "conflict":
        git(committed, "checkout", "--quiet", "-b", "side")
        for branch in ("side", "main"):
            git(committed, "checkout", "--quiet", branch)
            (committed / "code.py").write_text(f"{branch}\n")
            git(committed, "commit", "--quiet", "-a", "-m", branch)
        git(committed, "merge", "side", check=False)
    else:
        (committed / "inner").mkdir()
        git(committed / "inner", "init", "--quiet")
        (committed / "inner" / "file").write_text("inner\n")
    record = write(run, folder)["git"]
    assert "patch_absent" not in record
    assert record["dirty"] is True
    if state == "submodule":
        assert record["left_out"][0]["reason"] == "a repository of its own"
    else:
        assert record["patch"]


def test_outside_git_the_record_says_so(tmp_path, run, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    shutil.rmtree(tmp_path / "project" / ".git", ignore_errors=True)
    record = write(run, tmp_path)
    assert set(record["git"]) == {"absent"} and record["git"]["absent"]
    assert record["packages"]["python"] == sys.version.split()[0]


def test_where_git_is_not_installed_the_record_says_so(tmp_path, run, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "git cannot be started" in write(run, tmp_path)["git"]["absent"]


def test_a_git_that_hangs_is_ended(tmp_path, run, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(git_module, "CALL_SECONDS", 0.2)
    assert "took longer" in write(run, tmp_path)["git"]["absent"]


def test_versions_machine_command_and_parent_are_recorded(tmp_path, run):
    parent = {"run_id": "earlier", "checkpoint": "step-00000120", "manifest_sha256": "0" * 64}
    record = write(run, tmp_path, parent=parent)
    assert record["argv"] == ["pipeline.py", "training.epochs=1"]
    assert record["cwd"] == str(tmp_path)
    assert record["parent"] == parent
    assert record["time"].endswith("Z")
    assert {"lockstep", "torch", "numpy", "runnable", "pydantic", "safetensors", "scikit-learn", "uv"} < set(
        record["packages"]
    )
    assert record["packages"]["lockstep"] and record["packages"]["torch"]
    assert record["machine"]["cores"] >= 1 and record["machine"]["memory_bytes"] > 1 << 28


def test_uv_lock_is_copied_with_its_digest(tmp_path, run):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "below").mkdir()
    record = write(run, tmp_path / "below")
    assert record["uv_lock"] == {"bytes": 12, "sha256": hashlib.sha256(b"version = 1\n").hexdigest()}
    assert (run.path / "uv.lock").read_text() == "version = 1\n"


def test_a_later_attempt_writes_beside_the_first(tmp_path, run):
    write(run, tmp_path)
    first = run.provenance.read_bytes()
    second = provenance.write(run, ["pipeline.py", "--resume", "latest"], tmp_path, attempt=2)
    assert run.provenance.read_bytes() == first
    assert json.loads((run.path / "provenance.attempt-2.json").read_text()) == second


def test_only_allowed_variables_are_recorded_and_no_secrets(tmp_path, run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("LOCKSTEP_PLUGIN", "b\udcff")  # bytes that are not UTF-8
    monkeypatch.setenv("LOCKSTEP_TOKEN", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    environment = write(run, tmp_path)["environment"]
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["LOCKSTEP_PLUGIN"] == "b\\xff"
    assert "hunter2" not in run.provenance.read_text()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://user:hunter2@example.org:8443/a", "https://example.org:8443/a"),
        ("https://hunter2@example.org/a", "https://example.org/a"),
        ("https://example.org/a?private_token=hunter2#hunter2", "https://example.org/a"),
        ("https://user:hun@ter2@example.org/a", "https://example.org/a"),
        ("https://user:hun/ter2@example.org/a", None),
        ("https://user:hun/ter2/more", None),
        ("ssh://git@[::1]:22/a", "ssh://[::1]:22/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("user:hunter2@example.org:a", None),
        ("ext::sh -c hunter2", None),
        ("/srv/git/a.git", "/srv/git/a.git"),
    ],
)
def test_remote_urls_lose_their_credentials(url, expected):
    assert without_credentials(url) == expected


def test_provenance_imports_nothing_large():
    script = (
        "import sys; from lockstep.catalog import provenance; "
        "print(sorted({'torch', 'runnable', 'numpy', 'pydantic', 'yaml', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_scratch_files_leave_nothing_behind(tmp_path, run):
    run.live.mkdir()
    write(run, Path.cwd())
    assert not list(run.live.iterdir())
    assert not [path for path in run.path.iterdir() if path.name.startswith((".tmp-", "lockstep-git-"))]
