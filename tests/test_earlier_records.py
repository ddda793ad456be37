"""Records that earlier versions made stay readable: two runs, the second resumed from the first by another strategy.

``records/`` holds a catalog a version; each goes through every command that reads.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from lockstep import cli

VERSIONS = sorted((Path(__file__).parent / "records").glob("*.tar.xz"))


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name.removesuffix(".tar.xz"))
def catalog(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("catalog")
    with tarfile.open(request.param) as file:
        file.extractall(place, filter="data")
    return place


def said(capsys, *words):
    """The exit status and what a command printed."""
    code = cli.main([*map(str, words)])
    return code, capsys.readouterr().out


def test_they_are_listed_with_the_figures_that_they_had(capsys, catalog):
    code, out = said(capsys, "list", "--json", "--catalog", catalog)
    rows = {row["run_id"]: row for row in json.loads(out)}
    assert code == 0 and set(rows) == {"first", "second"}
    assert [rows[name]["strategy"] for name in ("first", "second")] == ["ddp", "allreduce"]
    assert all(row["status"] == "succeeded" for row in rows.values())
    kept = json.loads((catalog / "first" / "distributed_training_results.json").read_text(encoding="utf-8"))
    assert rows["first"]["loss"] == kept["evaluation"]["final"]["validation"]["loss"]


def test_they_verify_byte_by_byte_and_a_flipped_byte_shows(capsys, catalog, tmp_path):
    assert said(capsys, "verify", "--all", "--catalog", catalog)[0] == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(catalog, damaged)
    file = max(damaged.glob("first/checkpoints/step-*/model*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    assert said(capsys, "verify", "first", "--catalog", damaged)[0] == 1


def test_they_are_shown_compared_and_explained(capsys, catalog):
    code, out = said(capsys, "show", "second", "--catalog", catalog)
    assert code == 0 and "first" in out
    code, out = said(capsys, "diff", "first", "second", "--catalog", catalog)
    assert code in (0, 1) and "allreduce" in out
    code, out = said(
        capsys, "explain", catalog / "second" / "distributed_model_checkpoint.pt", "--catalog", catalog
    )
    assert code == 0 and "second" in out


@pytest.mark.slow
def test_they_resume_under_a_strategy_of_today(command, catalog, tmp_path):
    shutil.copytree(catalog, tmp_path / "catalog", dirs_exist_ok=True)
    command.catalog = tmp_path / "catalog"
    command.run("--resume", "second", "--run-id", "third", "training.epochs=4", "distributed.strategy=fsdp")
    assert (command.catalog / "third" / "manifest.json").is_file()
