"""Runs whose folder was copied or renamed: they keep their relatives, their good name, and a safe way to be shown."""

import json
import os
import shutil

import pytest

from compared_runs import build
from lockstep import cli
from lockstep.catalog import events, lineage, seal
from lockstep.catalog.explanation.ancestry import ancestry
from lockstep.catalog.run import Run, is_name


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
