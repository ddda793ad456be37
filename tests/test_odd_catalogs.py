"""Runs that were renamed or copied, catalogs behind links, records of other users: none of them is passed over."""

import contextlib
import json
import os
import shutil

import pytest

from compared_runs import build
from lockstep import cli
from lockstep.catalog import collect, events, listing, seal
from lockstep.catalog.diagnosis import runs
from lockstep.catalog.run import Run, claim, find
from lockstep.catalog.verification import stores, verify
from lockstep.errors import UsageError
from repositories import git, repository

NAMES = ("Best", "a copy", "läufe 2026", "UPPER.CASE", "x" * 100, "-dash")


def finished(catalog, name):
    run = build(catalog, name)
    events.append(run, "started", attempt=1, process={"host": os.uname().nodename})
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    seal.seal(run)
    return run


def lines(capsys, *words):
    code = cli.main([*words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_renamed_is_seen_by_every_command(tmp_path, capsys, name):
    finished(tmp_path, "a")
    (tmp_path / "a").rename(tmp_path / name)
    at = ("--catalog", str(tmp_path))
    code, said, _ = lines(capsys, "list", *at, "--json")
    assert code == 0 and [row["run_id"] for row in json.loads(said)] == [name]
    if not name.startswith("-"):
        assert lines(capsys, "show", name, *at)[0] == 0
    _, said, _ = lines(capsys, "verify", "--all", *at)
    assert name in said
    plan = collect.plan(tmp_path, collect.Criteria(statuses=("succeeded",)), now=9e9)
    assert [row["run_id"] for row in plan.runs] == [name]
    run = find(tmp_path, str(tmp_path / name))
    (run.path / ".tmp-left").write_text("x")
    assert ".tmp-left" in lines(capsys, "doctor", *at)[1]


def test_a_copy_stands_beside_its_original(tmp_path, capsys):
    finished(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / "a copy")
    assert {row["run_id"] for row in listing.rows(tmp_path)} == {"a", "a copy"}
    assert find(tmp_path, "a copy").path.name == "a copy"


def test_names_that_are_ours_are_no_runs(tmp_path):
    finished(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / ".store")
    shutil.copytree(tmp_path / "a", tmp_path / ".removing-b-0123456789ab")
    assert [row["run_id"] for row in listing.rows(tmp_path)] == ["a"]


@pytest.mark.parametrize("command", ["list", "verify --all", "doctor", "gc --status failed", "show latest"])
def test_a_catalog_that_is_a_link_to_nowhere_is_said_to_be_one(tmp_path, capsys, command):
    catalog = tmp_path / ".catalog"
    catalog.symlink_to(tmp_path / "unmounted")
    code, _, said = lines(capsys, *command.split(), "--catalog", str(catalog))
    assert code == 2 and "is a link to" in said and "unmounted" in said
    with pytest.raises(UsageError, match="is a link to"):
        claim(catalog, "a")


@contextlib.contextmanager
def nobody():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_run_of_another_user_is_said_to_be_closed_and_not_to_be_empty(tmp_path, capsys):
    catalog = tmp_path / "catalog"
    for name in ("open", "closed"):
        finished(catalog, name)
    for folder in (catalog, *catalog.parents):
        if folder.is_relative_to(tmp_path.parents[2]):
            folder.chmod(0o755)
    (catalog / "closed").chmod(0o700)
    commands = [("list", "--json"), ("show", "closed")]
    said = {}
    for who in (contextlib.nullcontext, nobody):  # first as root, which imports what is needed
        for words in commands:
            with who():
                said[words[0]] = lines(capsys, *words, "--catalog", str(catalog))
    closed = Run(catalog / "closed")
    with nobody():  # what else these commands do needs a temporary folder of this user's
        said["doctor"] = (0, "".join(map(str, runs.examine(closed))), "")
        said["verify"] = (1, "".join(map(str, verify(closed).findings)), "")
        assert [run.run_id for run in stores.runs(catalog)] == ["closed", "open"]
    rows = {row["run_id"]: row for row in json.loads(said["list"][1])}
    assert (rows["closed"]["status"], rows["closed"]["cause"]) == ("unknown", "not readable")
    assert rows["open"]["status"] == "succeeded"
    assert said["show"][0] == 2
    for command in ("show", "verify", "doctor"):
        text = said[command][1] + said[command][2]
        assert "cannot be read by user 65534: it belongs to root" in " ".join(text.split()), text
        assert "no events.jsonl" not in text


def test_a_catalog_keeps_itself_out_of_git_under_any_name(tmp_path):
    project = repository(tmp_path / "project", nets__py="x\n")
    claim(project / "runs", "a").events.write_text("x\n")
    (tmp_path / "elsewhere").mkdir()
    assert git(project, "status", "--porcelain") == b""
    assert (project / "runs" / ".gitignore").read_text() == "*\n"
    (project / "runs" / ".gitignore").write_text("mine\n")
    claim(project / "runs", "b")
    assert (project / "runs" / ".gitignore").read_text() == "mine\n"
