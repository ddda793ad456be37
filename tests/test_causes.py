"""Non-determinism is never said to be the cause while something that could decide is other, or is not recorded."""

import json

import pytest

from compared_runs import PACKAGES, build, imported, installed, recorded
from lockstep.catalog import compare
from lockstep.catalog.run import Run
from lockstep.files import read_json, write_json


def other_loss(rank: int, line: dict) -> None:
    if rank == 1 and line["kind"] == "step" and line["step"] == 10:
        line["loss"] += 1e-6


def parted(a: Run, b: Run) -> dict:
    found = compare.compare(a, b, [a.catalog])
    assert found["training"]["verdict"] == compare.PARTED
    return found["cause"]


def with_packages(**other: dict) -> dict:
    packages = {name: installed(version) for name, version in PACKAGES.items()}
    packages["unused"] = installed("1.0", module="unused")
    return recorded(distributions=packages | {name.replace("_", "-"): value for name, value in other.items()})


def test_where_all_is_recorded_and_equal_it_is_non_determinism_and_what_is_not_covered_is_named(tmp_path):
    cause = parted(build(tmp_path, "a"), build(tmp_path, "b", edit=other_loss))
    assert cause["kind"] == "non-determinism"
    assert any(each.startswith("no record covers") for each in cause["evidence"])


@pytest.mark.parametrize(
    ("changes", "kind", "because"),
    [
        ({"imports": imported("e" * 64)}, "code", "imports.nets"),
        (
            {"provenance": with_packages(helper_pkg=installed("1.1"))},
            "packages",
            "distributions.helper-pkg.version",
        ),
        (
            {"provenance": with_packages(helper_pkg=installed("1.0", "f" * 64))},
            "packages",
            "distributions.helper-pkg.sha256",
        ),
        ({"provenance": with_packages(unused=installed("2.0", module="unused"))}, "non-determinism", ""),
        (
            {"provenance": with_packages() | {"environment": {"PYTHONHASHSEED": "1"}}},
            "unknown",
            "environment.PYTHONHASHSEED",
        ),
        (
            {"provenance": with_packages() | {"machine": {"host": "b", "processor": "other"}}},
            "arithmetic",
            "processor",
        ),
    ],
)
def test_what_was_imported_and_installed_decides_too(tmp_path, changes, kind, because):
    a = build(tmp_path, "a", provenance=with_packages())
    b = build(tmp_path, "b", edit=other_loss, **({"provenance": with_packages()} | changes))
    cause = parted(a, b)
    assert cause["kind"] == kind, cause
    assert because in " ".join(cause["evidence"])


@pytest.mark.parametrize("lacking", ["imports.json", "distributions", "data", "machine", "patch", "left out"])
def test_what_is_not_recorded_forbids_the_conclusion(tmp_path, lacking):
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", edit=other_loss)
    if lacking == "imports.json":
        (b.path / lacking).unlink()
    elif lacking == "data":
        (b.data / "data.json").unlink()
    else:
        record = read_json(b.provenance)
        record.pop(lacking, None)
        if lacking == "patch":
            record["git"]["patch_absent"] = "git took longer than 10 s"
        if lacking == "left out":
            row = {"path": "big.bin", "bytes": 5, "reason": "above 1 MB"}
            record["git"] |= {"left_out": [row], "left_out_count": 1}
        for run in (a, b) if lacking == "left out" else (b,):
            write_json(run.provenance, record)
            if lacking in ("patch", "left out"):
                write_json(run.path / "imports.json", imported(complete=False))
    cause = parted(a, b)
    assert cause["kind"] == "unknown", cause
    assert "record" in " ".join(cause["evidence"])


def test_weights_that_were_given_under_one_name_and_are_others_are_the_cause(tmp_path):
    runs = [build(tmp_path, "a"), build(tmp_path, "b", edit=other_loss)]
    for run, digest in zip(runs, ("a" * 64, "b" * 64), strict=True):
        write_json(run.plan, read_json(run.plan) | {"weights": {"from": "w.pt", "sha256": digest}})
    assert parted(*runs)["kind"] == "starting point"


def test_the_digests_that_the_plan_of_an_earlier_version_holds_are_looked_at(tmp_path):
    runs = [build(tmp_path, "a"), build(tmp_path, "b", edit=other_loss)]
    for run, digest in zip(runs, ("a" * 64, "b" * 64), strict=True):
        (run.path / "imports.json").unlink()
        code = {"model.name": {"name": "nets:net", "file": "/x/nets.py", "sha256": digest}}
        write_json(run.plan, read_json(run.plan) | {"code": code})
    cause = parted(*runs)
    assert cause["kind"] == "code" and "imports.nets" in " ".join(cause["evidence"])


def test_an_attempt_that_went_on_with_other_code_is_the_cause(tmp_path):
    a, b = build(tmp_path, "a"), build(tmp_path, "b", edit=other_loss)
    write_json(b.path / "provenance.attempt-2.json", read_json(b.provenance))
    write_json(b.path / "imports.attempt-2.json", imported("e" * 64))
    cause = parted(a, b)
    assert cause["kind"] == "code" and "attempt 2 of B" in " ".join(cause["evidence"])


def test_a_file_that_the_run_may_have_read_is_not_passed_over(tmp_path):
    from repositories import git, repository

    code = repository(tmp_path / "code", nets__py="x\n", sizes__json="[1]\n")
    commits = [git(code, "rev-parse", "HEAD").decode().strip()]
    (code / "sizes.json").write_text("[2]\n")
    git(code, "commit", "--quiet", "-am", "two")
    commits.append(git(code, "rev-parse", "HEAD").decode().strip())
    states = [
        {"commit": each, "dirty": False, "patch": None, "tree": None, "left_out_count": 0} for each in commits
    ]
    a, b = (
        build(tmp_path, name, provenance=recorded(git=state), edit=edit)
        for name, state, edit in (("a", states[0], None), ("b", states[1], other_loss))
    )
    found = compare.compare(a, b, [code])
    assert found["cause"]["kind"] == "unknown"
    assert "sizes.json" in json.dumps(found["cause"])


def test_a_module_that_changed_while_the_run_started_is_told(tmp_path):
    b = build(tmp_path, "b", edit=other_loss, imports=imported() | {"other": ["nets"]})
    assert parted(build(tmp_path, "a"), b)["kind"] == "unknown"


def test_a_program_that_differs_and_was_imported_is_not_said_to_be_read_by_nobody(tmp_path):
    from repositories import git, repository

    code = repository(tmp_path / "code", nets__py="x = 1\n")
    first = git(code, "rev-parse", "HEAD").decode().strip()
    (code / "nets.py").write_text("x = 2\n")
    git(code, "commit", "--quiet", "-am", "two")
    second = git(code, "rev-parse", "HEAD").decode().strip()
    state = {"dirty": False, "patch": None, "tree": None, "left_out_count": 0}
    a = build(tmp_path, "a", provenance=recorded(git={**state, "commit": first}))
    provenance = recorded(git={**state, "commit": second})
    b = build(tmp_path, "b", provenance=provenance, imports=imported("e" * 64), edit=other_loss)
    cause = compare.compare(a, b, [code])["cause"]
    assert cause["kind"] == "code" and not cause["others"]
