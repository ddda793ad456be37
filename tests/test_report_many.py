"""Promises of `lockstep report`: one file, outside the seal, of one run or of several side by side."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import sample_metrics
import sample_run
from html_page import Page
from lockstep.catalog import events, seal
from lockstep.catalog.report import render_from_outside
from lockstep.catalog.run import Run
from lockstep.cli import main


def a_run(catalog: Path, name: str, *, steps: int = 60, ranks: int = 2, **changed: Any) -> Run:
    """A finished, sealed run under a name; ``changed`` replaces words of its parameters."""
    built = sample_run.build(catalog / ".new", ranks=ranks, epochs=6)
    run = Run(catalog / name)
    built.path.rename(run.path)
    sample_metrics.write(run, steps=steps)
    text = run.parameters.read_text()
    for old, new in changed.items():
        assert f"{old}: " in text
        text = re.sub(rf"(?m)^  {old}: .*", f"  {old}: {new}", text)
    run.parameters.write_text(text)
    results = json.loads(run.results.read_text())
    sample_run.dump(run.results, results | {"run_id": name, "tag": f"tag-{name}"})
    created = next(json.loads(line) for line in run.events.read_text().splitlines())
    run.events.unlink()
    events.append(run, "created", run_id=name, tag=f"tag-{name}", parent=None, summary=created["summary"])
    events.append(run, "started", attempt=1, process={"pid": 1, "host": "elsewhere"})
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    seal.seal(run)
    return run


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Three runs: the second with another optimizer, the third with other epochs."""
    folder = tmp_path / "catalog"
    a_run(folder, "run-a")
    a_run(folder, "run-b", optimizer="sgd", steps=90)
    a_run(folder, "run-c", ranks=4, epochs=7)
    return folder


def page_of(*words: object) -> Page:
    target = Path(str(words[-1]))
    assert main(["report", *map(str, words[:-1]), "--open", "no", "--output", str(target)]) == 0
    return Page(target.read_text())


def test_report_of_one_run_tells_its_end_and_every_file_s_digest(catalog: Path, tmp_path: Path) -> None:
    run = Run(catalog / "run-a")
    page = page_of("run-a", "--catalog", catalog, tmp_path / "one.html")
    assert "✓ succeeded" in page.text
    assert "while the run was still open" not in page.text
    sealed = json.loads(run.manifest.read_text())["files"]
    assert len(sealed) > 8
    for name, entry in sealed.items():
        assert f"{name} " in page.text
        assert entry["sha256"] in page.text


def test_default_place_is_outside_the_runs_and_the_seals_still_hold(
    catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "run-a", "run-b", "--catalog", str(catalog), "--open", "no"]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == catalog / ".reports" / "run-a-vs-run-b.html"
    assert "2 runs compared" in Page(printed.read_text()).text
    for name in ("run-a", "run-b"):
        assert seal.verify_seal(Run(catalog / name)) == []
    assert main(["list", "--catalog", str(catalog)]) == 0
    assert ".reports" not in capsys.readouterr().out


def test_report_into_a_run_s_folder_is_refused(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (catalog / "by-the-way").symlink_to(catalog / "run-a" / "logs")
    before = sorted(catalog.rglob("*"))
    for target in (
        catalog / "run-a" / "r.html",
        catalog / "run-b" / "logs" / "r.html",
        catalog / "by-the-way" / "r",
    ):
        assert main(["report", "run-a", "--catalog", str(catalog), "--output", str(target)]) == 2
        assert "its seal does not know would break it" in capsys.readouterr().err
    assert main(["report", "run-a", "--catalog", str(catalog), "--output", str(catalog)]) == 2
    assert (
        main(["report", "run-a", "--catalog", str(catalog), "--output", str(catalog / "no" / "r.html")]) == 2
    )
    assert sorted(catalog.rglob("*")) == before


def test_unknown_run_and_too_many_runs_are_one_message(
    catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "run-x", "--catalog", str(catalog)]) == 2
    assert "no run 'run-x'" in capsys.readouterr().err
    for index in range(25):
        (catalog / f"m{index}").mkdir()
        (catalog / f"m{index}" / "events.jsonl").write_text("{}\n")
    names = [f"m{index}" for index in range(25)]
    assert main(["report", *names, "--catalog", str(catalog)]) == 2
    assert "at most 24" in capsys.readouterr().err


def test_same_run_named_twice_is_one_run(catalog: Path, tmp_path: Path) -> None:
    page = page_of("run-a", "run-a", "--catalog", catalog, tmp_path / "r.html")
    assert "Lockstep run report" in page.text


def test_side_by_side_overlays_every_run_s_curves(catalog: Path, tmp_path: Path) -> None:
    page = page_of("run-a", "run-b", "run-c", "--catalog", catalog, tmp_path / "r.html")
    figures = page.figures
    assert [run["name"] for run in figures["runs"]] == ["tag-run-a", "tag-run-b", "tag-run-c"]
    assert [run["last"][-1] for run in figures["runs"]] == [60, 90, 60]
    for key in ("loss", "accuracy", "grad_norm", "learning_rate", "samples_per_second"):
        assert {line["run"] for line in figures["charts"][key]["lines"]} == {0, 1, 2}, key
    assert [len(figures["lanes"][run]["ranks"]) for run in "012"] == [2, 2, 4]
    kinds = {attributes.get("class") or "" for tag, attributes in page.elements if tag == "polyline"}
    assert {"line train k-run0", "line validation k-run1", "line steps k-run2"} <= kinds
    switches = [attributes["data-run"] for tag, attributes in page.elements if "data-run" in attributes]
    assert switches == ["0", "1", "2"]


def test_differences_of_parameters_are_marked_and_nothing_else(catalog: Path, tmp_path: Path) -> None:
    markup = render_from_outside([Run(catalog / name) for name in ("run-a", "run-b", "run-c")])
    (parameters,) = re.findall(r'<section id="parameters".*?</section>', markup, re.DOTALL)
    marked = re.findall(r'<tr class="differs"><th scope="row">.*?</span>([\w.]+)</th>', parameters)
    assert marked == ["training.epochs", "training.optimizer", "distributed.world_size"]
    assert (
        "3 of 18 parameters differ: training.epochs, training.optimizer, distributed.world_size."
        in Page(markup).text
    )
    row = next(row for row in re.findall("<tr.*?</tr>", parameters) if "training.optimizer" in row)
    assert re.findall(r"<td( class=\"odd\")?>(\w+)</td>", row) == [
        ("", "adam"),
        (' class="odd"', "sgd"),
        ("", "adam"),
    ]
    assert row.count("differs: ") == 1, "the mark is told to who does not see it"


def test_runs_with_the_same_parameters_say_so(catalog: Path, tmp_path: Path) -> None:
    a_run(catalog, "run-d")
    page = page_of("run-a", "run-d", "--catalog", catalog, tmp_path / "r.html")
    assert "All 18 parameters are the same." in page.text


def test_value_that_a_run_lacks_is_told_from_one_that_is_null(catalog: Path, tmp_path: Path) -> None:
    run = Run(catalog / "run-b")
    run.parameters.write_text(run.parameters.read_text().replace("  dropout: 0.0\n", ""))
    other = Run(catalog / "run-c")
    other.parameters.write_text(other.parameters.read_text().replace("dropout: 0.0", "dropout: null"))
    markup = render_from_outside([Run(catalog / "run-a"), run, other])
    row = next(row for row in re.findall("<tr.*?</tr>", markup) if "model.dropout" in row)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["0.0", "<i>absent</i>", "–"]


def test_a_killed_run_and_an_empty_one_stand_beside_others(catalog: Path, tmp_path: Path) -> None:
    killed = sample_run.build(catalog / ".new")
    killed.path.rename(catalog / "killed")
    run = Run(catalog / "killed")
    run.results.unlink()
    sample_metrics.write(run, steps=40, epochs_of=10)
    process = {"pid": 1, "host": os.uname().nodename, "boot_id": "another", "start_ticks": 1}
    run.events.unlink()
    events.append(run, "created", run_id="killed", tag=None, parent=None, summary={})
    events.append(run, "started", attempt=1, process=process)
    (catalog / "empty").mkdir()
    (catalog / "empty" / "events.jsonl").write_text("")
    page = page_of("run-a", "killed", "empty", "--catalog", catalog, tmp_path / "r.html")
    assert "killed: machine restarted" in page.text
    assert "1 of 3 runs were evaluated." in page.text
    loss = {(line["run"], line["split"]): line for line in page.figures["charts"]["loss"]["lines"]}
    assert loss[1, "validation"]["steps"] == [10, 20, 30, 40]
    assert loss[1, "validation"]["values"] == pytest.approx([1.5, 1.0, 1 / 3 + 0.5, 0.75])
    alone = page_of("killed", "--catalog", catalog, tmp_path / "k.html")
    assert "In 4 epochs the loss on the validation split went from 1.500 to 0.7500." in alone.text


def test_report_imports_neither_torch_nor_runnable(catalog: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from lockstep.cli import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in ('torch', 'runnable', 'pydantic', 'rich') if name in sys.modules])"
    )
    words = ["report", "run-a", "run-b", "--catalog", str(catalog), "--output", str(tmp_path / "r.html")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_report_says_where_the_page_is_as_json(tmp_path, capsys):
    run = sample_run.build(tmp_path)
    assert main(["report", run.run_id, "--catalog", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"] == [run.run_id] and Path(said["path"]).is_file()
