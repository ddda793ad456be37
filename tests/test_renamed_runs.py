"""Runs whose folder was copied or renamed: they keep their relatives, their good name, and a safe way to be shown."""

import contextlib
import json
import os
import shutil
import subprocess

import pytest

from compared_runs import build
from lockstep import cli
from lockstep.catalog import events, lineage, seal
from lockstep.catalog.explanation.ancestry import ancestry
from lockstep.catalog.run import Run, is_name
from lockstep.catalog.verification import verify
from lockstep.orchestration import hints


def finished(catalog, name, **more):
    run = build(catalog, name, **more)
    events.append(run, "started", attempt=1, process={"host": os.uname().nodename})
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    seal.seal(run)
    return run


def child_of(catalog, name, run_id):
    run = Run(catalog / run_id)
    run.path.mkdir()
    parent = {"run_id": name, "checkpoint": "step-00000020", "manifest_sha256": "0" * 64}
    events.append(run, "created", run_id=run_id, tag=None, parent=parent, summary={})
    return run


def said(capsys, *words):
    with contextlib.suppress(SystemExit):  # of a wrong option
        cli.main([*words])
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.parametrize("name", ["a copy", "Best", "läufe"])
def test_a_copied_run_is_the_ancestor_of_what_was_resumed_from_it(tmp_path, capsys, name):
    finished(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / name)
    child = child_of(tmp_path, name, "child")
    assert [each["run_id"] for each in lineage.of(child)["ancestors"]] == [name]
    assert lineage.of(Run(tmp_path / name))["children"][0]["run_id"] == "child"
    assert not lineage.of(Run(tmp_path / "a"))["children"]
    (found,) = ancestry(tmp_path, "child", lineage.parent_of(child))
    assert found["status"] == "succeeded"
    shown = json.loads(said(capsys, "show", "child", "--json", "--catalog", str(tmp_path)))
    assert shown["lineage"]["ancestors"][0]["status"] == "succeeded"


@pytest.mark.parametrize("name", ["..", "../elsewhere", "/etc", ".store", "x" * 256, "\ud800", "a\0b", ""])
def test_a_recorded_name_that_leads_out_of_the_catalog_is_no_ancestor(tmp_path, name):
    catalog = tmp_path / "catalog"
    finished(catalog, "a")
    finished(tmp_path, "elsewhere")
    assert not is_name(name)
    parent = {"run_id": name, "checkpoint": "step-00000020"}
    assert all(each["status"] == "absent" for each in ancestry(catalog, "a", parent))


def test_a_renamed_run_is_told_of_and_not_accused(tmp_path, capsys):
    run = finished(tmp_path, "a")
    run.path.rename(tmp_path / "A 2")
    verdict = verify(Run(tmp_path / "A 2"))
    assert not any("folder" in str(each) for each in verdict.findings)
    assert verdict.notes == ["the folder was renamed or copied: the run was recorded as a"]
    shown = said(capsys, "verify", "A 2", "--catalog", str(tmp_path))
    assert "note        the folder was renamed" in shown
    assert not verify(finished(tmp_path, "b")).notes


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "tab\there", "\u202ereversed"])
def test_no_command_writes_the_control_characters_of_a_folders_name(tmp_path, capsys, name):
    finished(tmp_path, "a")
    (tmp_path / "a").rename(tmp_path / name)
    at, file = ("--catalog", str(tmp_path)), str(tmp_path / name / "provenance.json")
    commands = [
        ("verify", "--all", *at),
        ("verify", name, *at),
        ("explain", file, *at),
        ("show", "nothing-of-the-kind", *at),
        ("show", name, "step", "nothing", *at),
        ("export", name, "--format", "openlineage", *at),
        ("seal", name, *at),
        ("report", name, *at),
        ("resume", name, *at),
    ]
    for words in commands:
        assert name not in said(capsys, *words), words


@pytest.mark.parametrize("name", ["a copy", "it's", "\x1b[31mred", "läufe 1", "$HOME"])
def test_a_hint_is_a_command_that_a_shell_takes_apart_rightly(tmp_path, name):
    run = finished(tmp_path, "a")
    run.path.rename(tmp_path / name)
    run = Run(tmp_path / name)
    (hint,) = [each for each in verify(run).unproven if "--anchor" in each]
    assert f"lockstep seal {run.typed} --anchor" in hint
    read = ["bash", "-c", f"printf %s {run.typed}"]
    assert subprocess.run(read, capture_output=True, check=True).stdout == os.fsencode(name)
    again = hints.to_resume(["lockstep"], tmp_path, tmp_path, run, "training.epochs=3")
    assert run.typed in again
