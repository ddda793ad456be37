"""Promises of report.html about a folder whose files are hostile, torn, missing or of another shape."""

import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import sample_run
from html_page import Page
from lockstep.catalog.report import render, write
from lockstep.catalog.run import Run

HOSTILE = "</script><img src=x onerror=alert(1)>\x00\x1b[31m\u202e\ud800\"'&"


def hostile(value: object) -> object:
    """The same shape with every text made hostile."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    innocent = Page(render(run))
    for path in (run.results, run.plan):
        sample_run.dump(path, hostile(json.loads(path.read_text())))
    sample_run.dump(run.provenance, {HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}})
    sample_run.dump(run.plan, {"warnings": [HOSTILE]})
    run.parameters.write_text(f"model:\n  name: {HOSTILE}\n", errors="surrogatepass")
    end = {"event": "finished", "status": HOSTILE, "cause": HOSTILE, "message": HOSTILE, "rank": HOSTILE}
    step = {"event": "step_finished", "time": HOSTILE, "step": HOSTILE, "status": HOSTILE, "seconds": HOSTILE}
    run.events.write_text(
        "".join(json.dumps(e) + "\n" for e in ({"event": "started", "time": HOSTILE}, step, end))
    )
    (run.logs / "a <b> #?%.log").write_text("")
    markup = write(run).read_text()
    page = Page(markup)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in innocent.elements} | {"aside", "pre"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "</script><img src=x onerror=alert(1)>\\x00\\x1b[31m\\x202e\\xd800\"'&" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", markup)
    assert ("a", {"href": "logs/a%20%3Cb%3E%20%23%3F%25.log"}) in page.elements


INPUTS = (
    "distributed_training_results.json",
    "provenance.json",
    "distributed.json",
    "parameters.yaml",
    "events.jsonl",
)


@pytest.mark.parametrize("name", INPUTS)
def test_page_says_which_input_is_missing(tmp_path: Path, name: str) -> None:
    run = sample_run.build(tmp_path)
    (run.path / name).unlink()
    assert f"Missing: {name} is missing" in Page(render(run)).text


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("keep", [0, 1, 0.5, -2])
def test_torn_input_still_gives_a_page(tmp_path: Path, name: str, keep: float) -> None:
    run = sample_run.build(tmp_path)
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert run.run_id in Page(render(run)).text


def test_empty_folder_gives_a_page(tmp_path: Path) -> None:
    text = Page(render(Run(tmp_path))).text
    assert text.count("Missing: ") == len(INPUTS)


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, '{"a":' * 100_000, "\xff\xfe", "9" * 5000])
def test_input_of_another_shape_still_gives_a_page(tmp_path: Path, content: str) -> None:
    run = sample_run.build(tmp_path)
    for name in INPUTS:
        (run.path / name).write_bytes(content.encode("latin-1"))
    assert run.run_id in Page(render(run)).text


WRONG = (None, True, -1, 1e308, float("nan"), float("-inf"), 10**400, "x", [], {}, [[]], [None], {"": None})


@pytest.mark.parametrize("turn", range(3))
def test_value_of_another_type_still_gives_a_page(tmp_path: Path, turn: int) -> None:
    run = sample_run.build(tmp_path, epochs=2, ranks=1, classes=2)
    wrong = itertools.islice(itertools.cycle(WRONG), turn * 4, None)
    for path in (run.results, run.plan):
        whole = json.loads(path.read_text())
        for place in places(whole):
            sample_run.dump(path, replaced(whole, place, next(wrong)))
            Page(render(run))
    told = [json.loads(line) for line in run.events.read_text().splitlines()]
    for place in places(told):
        events = replaced(told, place, next(wrong))
        if isinstance(events, list):
            run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
            Page(render(run))


def places(value: object) -> list[tuple[Any, ...]]:
    """The path of every member, of each list the first two."""
    if isinstance(value, dict):
        pairs: list[tuple[Any, Any]] = list(value.items())
    else:
        pairs = list(enumerate(value))[:2] if isinstance(value, list) else []
    return [path for key, inner in pairs for path in [(key,), *((key, *rest) for rest in places(inner))]]


def replaced(value: Any, place: tuple[Any, ...], wrong: object) -> Any:
    if not place:
        return wrong
    copy = value.copy()
    copy[place[0]] = replaced(value[place[0]], place[1:], wrong)
    return copy


def test_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path / "catalog")
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    for path in (run.parameters, run.provenance):
        path.unlink()
        path.symlink_to(secret)
    run.plan.unlink()
    os.mkfifo(run.plan)
    text = Page(render(run)).text
    assert "a secret" not in text
    assert "parameters.yaml leads out of the run's folder" in text
    assert "distributed.json is not a file" in text


def test_folder_in_the_place_of_a_file_and_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    for place in (run.metrics, run.logs, run.checkpoints):
        shutil.rmtree(place)
    run.metrics.write_text("")
    run.logs.symlink_to(run.logs)
    run.events.unlink()
    run.events.mkdir()
    assert "events.jsonl is not a file" in Page(render(run)).text
