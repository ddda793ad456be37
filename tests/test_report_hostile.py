"""Promises of report.html about a folder whose files are hostile, torn, missing or of another shape."""

import itertools
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample_metrics
import sample_run
from html_page import Page
from lockstep.catalog.report import render, render_from_outside, write
from lockstep.catalog.report.data import embedded
from lockstep.catalog.run import Run
from lockstep.catalog.seal import seal
from lockstep.files import printable

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
    assert "</script><img src=x onerror=alert(1)>\\x00\\x1b[31m\\x202e\\ud800\"'&" in page.text
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


@pytest.mark.parametrize(
    "turn", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
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


NAUGHTY = (
    *("</script><script>alert(1)</script>", "<!--<script>", "]]>", "\u2028alert(1)\u2029", "${alert(1)}"),
    *('"><svg onload=alert(1)>', "' onmouseover='alert(1)", "javascript:alert(1)", "\\u003cscript\\u003e"),
    *(
        "\x00\x1b]0;x\x07",
        "\u202egnp.exe",
        "\ud800",
        "&lt;b&gt;",
        "{{7*7}}",
        "%3Cscript%3E",
        "../../etc/passwd",
    ),
)
texts = st.one_of(st.sampled_from(NAUGHTY), st.text(max_size=40))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def check_nothing_runs(markup: str, innocent: Page) -> Page:
    """The page has no element, attribute or script that an innocent run's page has not."""
    page = Page(markup)
    assert len(page.scripts) == len(innocent.scripts)
    assert page.scripts[1] == innocent.scripts[1], "the one script that runs is ours to the byte"
    known = {tag for tag, _ in innocent.elements} | {"aside", "pre", "p", "details", "summary", "i"}
    for tag, attributes in page.elements:
        assert tag in known, tag
        assert not any(name.startswith("on") for name in attributes), attributes
        assert not (attributes.get("href") or "").lower().startswith(("javascript", "http")), attributes
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202e\ud800-\udfff]", markup)
    return page


SHARED = (HealthCheck.function_scoped_fixture,)
recorded = given(tag=texts, name=texts, value=values, line=values, text=texts)


@settings(max_examples=15, deadline=None, suppress_health_check=SHARED)
@recorded
def test_no_recorded_value_gets_out_of_its_place(tmp_path: Path, **drawn: Any) -> None:
    hold_hostile_values(tmp_path, **drawn)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=SHARED)
@recorded
def test_no_recorded_value_gets_out_of_its_place_300_times(tmp_path: Path, **drawn: Any) -> None:
    hold_hostile_values(tmp_path, **drawn)


def hold_hostile_values(tmp_path: Path, tag: str, name: str, value: Any, line: Any, text: str) -> None:
    """Pages of a run whose every file holds what was drawn."""
    shutil.rmtree(tmp_path / "catalog", ignore_errors=True)
    run = sample_run.build(tmp_path / "catalog", epochs=2, classes=2)
    sample_metrics.write(run, steps=20)
    innocent = Page(render(run)), Page(render_from_outside([run, run]))
    results = json.loads(run.results.read_text())
    results["evaluation"]["classes"] = [name, text]
    sample_run.dump(run.results, results | {"tag": tag, "dataset": name, "model": value, "strategy": text})
    sample_run.dump(run.provenance, {name: value, "argv": [text, tag], "git": {text: line}})
    run.parameters.write_text(f"{json.dumps(name)}: {json.dumps(text)}\n", errors="surrogatepass")
    first = {"kind": "step", "step": 1, name: value, "loss": line, "samples": value, "step_seconds": text}
    run.metrics_file(0).write_text(f"{json.dumps(first)}\n{json.dumps(line)}\n{json.dumps(text)}")
    created = {"event": "created", "tag": tag, "summary": {"dataset": value, "model": text}}
    run.events.write_text("".join(json.dumps(each) + "\n" for each in (created, line)))
    check_nothing_runs(render(run), innocent[0])
    check_nothing_runs(render_from_outside([run, run]), innocent[1])


@settings(max_examples=300, deadline=None)
@given(value=values)
def test_embedded_json_comes_back_and_holds_nothing_that_html_would_read(value: Any) -> None:
    clean = json.loads(json.dumps(value, allow_nan=True).replace("NaN", "0").replace("Infinity", "0"))
    text = embedded(clean)
    assert json.loads(text) == clean
    assert text.isascii()
    assert not set(text) & set("<>&")


def test_hostile_metrics_and_seal_still_give_a_page(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, ranks=2)
    deep, huge = b"[" * 100_000, b'{"kind": "step", "step": 3, "loss": "' + b"x" * 3_000_000 + b'"}'
    endless = b'{"kind": "step", "step": ' + b"9" * 5000 + b"}"
    odd = [
        {"kind": "step", "step": 1, "loss": float("nan"), "samples": -5, "step_seconds": float("inf")},
        {"kind": "step", "step": -1},
        {"kind": "step", "step": True},
        {"kind": ["step"], "step": 2},
        {
            "kind": "step",
            "step": 2,
            "loss": [1],
            "samples": {},
            "sync_seconds": "x",
            "learning_rate": 10**400,
        },
        {"kind": "epoch", "step": 2, "epoch": 1, "train": [], "validation": {"loss": "x", "samples": 1e308}},
        {"kind": "step", "step": 2},
        {"kind": "step", "step": 10**12, "loss": 1e300, "samples": 1e14, "step_seconds": 1e14},
    ]
    lines = [deep, huge, endless, b"\xff\xfe", *(json.dumps(each).encode() for each in odd), b'{"kind": "st']
    run.metrics_file(0).write_bytes(b"\n".join(lines))
    run.metrics_file(1).unlink()
    os.mkfifo(run.metrics_file(1))
    (run.metrics / "rank-2.jsonl").symlink_to("/dev/zero")
    (run.metrics / "rank-99999999999.jsonl").write_text("{}")
    seal_of_nothing = {"algorithm": "sha256", "files": {"</script>": {"bytes": 1, "sha256": "x"}}}
    run.manifest.write_text(json.dumps(seal_of_nothing))
    page = Page(render_from_outside([run]))
    assert run.run_id in page.text
    assert "The run is not sealed" in page.text
    assert page.figures["runs"][0]["last"][-1] == 10**12


def test_hostile_file_names_in_a_seal_are_shown_as_text(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    innocent = Page(render_from_outside([run]))
    for name in ("<img src=x onerror=alert(1)>", "a\x1b[31m", "\u202etxt.exe"):
        (run.path / name).write_text("")
    seal(run)
    page = check_nothing_runs(render_from_outside([run]), innocent)
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "a\\x1b[31m" in page.text


def test_10_000_hostile_names_stay_names(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, epochs=1)
    innocent = Page(render(run))
    draw = random.Random(11)
    pieces = (
        *NAUGHTY,
        "<",
        ">",
        "&",
        "'",
        '"',
        "`",
        "=",
        "/",
        "\\",
        "a",
        " ",
        "--",
        "é",
        "🦊",
        "\x7f",
        "\x9b",
        "\ufeff",
    )
    results = json.loads(run.results.read_text())
    for _ in range(10):
        names = ["".join(draw.choices(pieces, k=draw.randrange(1, 6))) for _ in range(1000)]
        entries = [{"class": f"#{index} {name}#", "support": 1} for index, name in enumerate(names)]
        results["evaluation"]["final"]["test"]["per_class"] = entries
        sample_run.dump(run.results, results)
        text = "".join(check_nothing_runs(render(run), innocent).words)
        for index, name in enumerate(names):
            assert f"#{index} {printable(name)}#" in text
