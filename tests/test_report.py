"""Promises of report.html: it shows the run, believes nothing, asks for nothing, and never fails."""

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import browser
import sample_metrics
import sample_run
from html_page import Page
from lockstep.catalog.report import lanes, render, steps, write
from lockstep.catalog.report.page import style


def test_page_holds_the_run_s_figures(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, ranks=4)
    results = json.loads(run.results.read_text())
    text = Page(write(run).read_text()).text
    test = results["evaluation"]["final"]["test"]
    for shown in (
        *(run.run_id, "digits-baseline", "trained and evaluated", "2026-11-20 11:51:46 UTC", "20,219"),
        *(f"{test['accuracy']:.1%}", "0.08740", "330 steps, 30 epochs"),
        *(
            "rank 3",
            "5.81 s",
            "372 MB",
            "prepare_data",
            "hidden_sizes",
            "8661eb7f0c1f4f0e9a6d6d8e1b2c3d4e5f60718a",
        ),
        *(
            "4 ranks share 2 cores",
            "'digits baseline'",
            "logs/rank-0.log",
            f"{test['per_class'][3]['recall']:.1%}",
        ),
        f"{results['epochs'][-1]['validation']['loss']:#.4g}",
    ):
        assert shown in text, shown


def test_every_epoch_and_step_is_in_the_page_with_its_exact_value(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, epochs=12)
    lines = sample_metrics.write(run, steps=132)
    epochs = json.loads(run.results.read_text())["epochs"]
    page = Page(render(run))
    loss = {line["split"]: line for line in page.figures["charts"]["loss"]["lines"]}
    mean = [sum(line["loss"] for line in of_step) / 2 for of_step in zip(*lines, strict=True)]
    assert loss["steps"]["values"] == pytest.approx(mean, rel=1e-8)
    assert page.figures["runs"][0]["first"] == list(range(1, 133))
    for split in ("train", "validation"):
        assert loss[split]["values"] == pytest.approx([epoch[split]["loss"] for epoch in epochs], rel=1e-8)
        assert loss[split]["steps"] == [epoch["step"] for epoch in epochs]
    for epoch in epochs:
        assert f"{epoch['train']['loss']:#.4g} {epoch['train']['accuracy']:.1%}" in page.text
    assert f"131 {mean[130]:#.4g}" in page.text, "without script the table tells a step's values"


def test_curves_and_lanes_are_drawn_without_script(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, ranks=3)
    sample_metrics.write(run, steps=330)
    page = Page(render(run))
    charts = [attributes["data-chart"] for tag, attributes in page.elements if attributes.get("data-chart")]
    quantities = ("loss", "accuracy", "grad_norm", "learning_rate", "samples_per_second", "waiting")
    assert sorted(filter(None, charts)) == sorted(quantities)
    drawn = [(tag, attributes.get("class") or "") for tag, attributes in page.elements]
    assert sum(tag == "polyline" and kind.startswith("line") for tag, kind in drawn) == 3 + 2 + 4
    assert sum(tag == "svg" and kind == "lane" for tag, kind in drawn) == 3
    assert {kind for tag, kind in drawn if tag == "polygon"} >= {"part data", "part compute", "part waiting"}


@pytest.mark.parametrize(
    ("read", "last", "named"), [(10, 9, False), (10, 10, True), (200, 121, False), (200, 122, True)]
)
def test_a_rank_that_chance_made_the_last_is_no_straggler(read: int, last: int, named: bool) -> None:
    ranks = [
        SimpleNamespace(rank=rank, steps_last=count, kept_waiting_seconds=float(count))
        for rank, count in enumerate((last, read - last))
    ]
    seen = SimpleNamespace(lanes=ranks, steps_read=read, seconds=[float(read)], share_read=1.0)
    assert ("Rank 0 is the straggler" in lanes.straggler(seen)) == named  # type: ignore[arg-type]


@pytest.mark.parametrize("straggler", [None, 0, 2])
def test_straggler_is_named(tmp_path: Path, straggler: int | None) -> None:
    run = sample_run.build(tmp_path, ranks=3)
    sample_metrics.write(run, steps=330, straggler=straggler)
    text = Page(render(run)).text
    if straggler is None:
        assert "No rank stands out as a straggler" in text
    else:
        assert f"Rank {straggler} is the straggler: the last to be ready in 100.0% of the steps" in text
        assert "No rank stands out" not in text


def test_step_that_was_repeated_after_a_crash_counts_once(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    sample_metrics.write(run, steps=100)
    again = sample_metrics.write(run, steps=120, first=81, attempt=2, loss=7.0)
    loss = Page(render(run)).figures["charts"]["loss"]["lines"][0]["values"]
    assert len(loss) == 120
    assert loss[80:] == pytest.approx([line["loss"] for line in again[0]])
    assert max(loss[:80]) < 7


def test_long_run_is_a_small_page_that_keeps_every_spike(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    sample_metrics.write(run, steps=12_000, spikes={9_349: 99.0})
    markup = render(run)
    page = Page(markup)
    assert len(markup) < 1_500_000
    steps = page.figures["runs"][0]
    place = next(index for index, last in enumerate(steps["last"]) if last >= 9_349)
    line = next(line for line in page.figures["charts"]["loss"]["lines"] if line["split"] == "steps")
    assert line["high"][place] == 99
    assert steps["first"][place] <= 9_349
    assert max(line["high"]) == 99
    assert max(high for index, high in enumerate(line["high"]) if index != place) < 5
    assert "were read, spread evenly" not in page.text


def test_metrics_too_large_to_be_read_in_full_are_read_evenly_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run.build(tmp_path)
    sample_metrics.write(run, steps=12_000)
    monkeypatch.setattr(steps, "MOST_BYTES", 1 << 19)
    page = Page(render(run))
    told = re.search(r"of 12,000 steps ([\d,]+) were read, spread evenly", page.text)
    assert told is not None
    assert 500 < int(told[1].replace(",", "")) < 6_000
    line = page.figures["runs"][0]
    assert line["last"][-1] == 12_000
    assert len(line["last"]) > 1000
    exact = json.loads(run.metrics_file(0).read_text().splitlines()[1])["step_seconds"] * 12_000
    assert line["seconds"][-1] == pytest.approx(exact, rel=0.15), "time stands for the steps not read as well"


@pytest.mark.parametrize("classes", [2, 10, 25, 26, 100])
def test_confusion_matrix_shows_every_count(tmp_path: Path, classes: int) -> None:
    run = sample_run.build(tmp_path, epochs=2, classes=classes)
    confusion = json.loads(run.results.read_text())["evaluation"]["final"]["test"]["confusion"]
    text = Page(render(run)).text
    for true, row in enumerate(confusion):
        for predicted, count in enumerate(row):
            verb = "recognised" if true == predicted else f"taken for {predicted}"
            assert (f"{true} {verb}: {count} of {sum(row)}," in text) == (count > 0)


def test_one_epoch_one_rank_no_validation_no_evaluation_is_a_whole_page(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, epochs=1, ranks=1, validation=False)
    results = json.loads(run.results.read_text())
    del results["evaluation"]
    sample_run.dump(run.results, results)
    text = Page(render(run)).text
    assert "One epoch: loss 1.548 on the train split." in text
    assert "The run was not evaluated." in text
    assert "waited for each other" not in text


@pytest.mark.parametrize("status", ["failed", "interrupted", "succeeded"])
def test_recorded_end_outranks_what_the_steps_suggest(tmp_path: Path, status: str) -> None:
    run = sample_run.build(tmp_path)
    end = {"event": "finished", "time": "2026-11-20T11:52:00Z", "status": status, "cause": "hang", "rank": 1}
    with run.events.open("a") as file:
        file.write(json.dumps({**end, "message": "rank 1 stood still in all_reduce"}) + "\n")
    text = Page(render(run)).text
    assert f"{status}: hang, rank 1" in text
    assert "rank 1 stood still in all_reduce" in text
    assert "while the run was still open" not in text


def test_attempts_are_told_apart(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    again = [
        {"event": "finished", "time": "2026-11-20T11:52:00Z", "status": "interrupted", "cause": "SIGINT"},
        {"event": "started", "time": "2026-11-21T08:00:00Z", "attempt": 2},
        {
            "event": "step_finished",
            "time": "2026-11-21T08:00:00Z",
            "step": "train",
            "status": "skipped",
            "seconds": 0,
        },
    ]
    with run.events.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in again)
    text = Page(render(run)).text
    assert "Attempt 1, 2026-11-20 11:51:46 UTC" in text
    assert "Attempt 2, 2026-11-21 08:00:00 UTC" in text
    assert "skipped" in text
    assert "interrupted: SIGINT" not in text


def test_page_asks_for_nothing_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, ranks=4)
    page = Page(write(run).read_text())
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    data, own = (text for _, text in page.scripts)
    assert json.loads(data)
    assert not re.search(
        r"\bfetch\b|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(|innerHTML|eval\(", own
    )
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert "src" not in attributes, tag
        for name in ("href", "xlink:href"):
            link = attributes.get(name) or ""
            assert not re.match(r"(?!data:,$)[a-z]+:|//", link, re.IGNORECASE), link
            if tag == "a" and not link.startswith("#"):
                assert (run.path / link).exists()
    styles = re.findall(r"<style>(.*?)</style>", run.report.read_text(), re.DOTALL)
    assert re.findall(r"url\(([^)]*)\)|@import", styles[0]) == ["#hatch"]


def test_policy_names_the_digests_of_the_one_style_and_the_one_script(tmp_path: Path) -> None:
    markup = render(sample_run.build(tmp_path))
    page = Page(markup)
    (style,) = re.findall(r"<style>(.*?)</style>", markup, re.DOTALL)
    (script,) = (text for attributes, text in page.scripts if "type" not in attributes)
    style_digest, script_digest = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    (policy,) = (
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith(
        f"default-src 'none'; style-src 'sha256-{style_digest}'; script-src 'sha256-{script_digest}';"
    )
    assert "unsafe" not in policy


def test_absent_values_are_shown_as_a_dash(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    results = json.loads(run.results.read_text())
    results["epochs"][3]["train"]["loss"] = None
    results["evaluation"]["final"]["test"]["per_class"][0]["precision"] = None
    results["ranks"][0]["peak_rss_bytes"] = None
    sample_run.dump(run.results, results)
    text = Page(render(run)).text
    assert re.search(r"\b4 44 \S+ ms 0.001000 – ", text), "the table has a dash for the loss of epoch 4"
    assert "None" not in text


def test_write_leaves_the_page_and_nothing_else(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    before = {path.name for path in run.path.iterdir()}
    assert write(run) == run.report
    assert write(run).read_text() == render(run)
    assert {path.name for path in run.path.iterdir()} == before | {"report.html"}


def test_headings_descend_in_order_and_every_picture_has_a_name(tmp_path: Path) -> None:
    page = Page(render(sample_run.build(tmp_path, ranks=4)))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for tag, attributes in page.elements:
        if attributes.get("role") in ("img", "region") or tag in ("nav", "aside"):
            assert attributes.get("aria-label"), tag
        if tag == "th":
            assert attributes.get("scope") in ("row", "col", "rowgroup")
    assert {"header", "nav", "main"} <= {tag for tag, _ in page.elements}


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", style(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]+)", light if scheme == "light" else light + dark))
    texts = [(ink, paper) for ink in ("ink", "quiet", "link") for paper in ("paper", "raised")]
    texts += [(ink, "paper") for ink in ("good", "bad", "hold")]
    texts += [
        ("on-data", "data"),
        ("on-part", "compute"),
        ("on-part", "waiting"),
        ("on-part", "other"),
        ("on-part", "sync"),
    ]
    for hue in "rw":
        texts += [("c-low", f"{hue}{level}") for level in (1, 2, 3)]
        texts += [("c-mid", f"{hue}4"), ("c-high", f"{hue}5"), ("c-high", f"{hue}6")]
    for ink, paper in texts:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    runs = [f"run{index}" for index in range(8)]
    for line in ("train", "validation", "data", "compute", "sync", "waiting", "other", "edge", *runs):
        assert contrast(colours[line], colours["paper"]) >= 3, line


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_shows_the_figures_offline_and_the_policy_is_in_force(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path / "catalog", ranks=4)
    sample_metrics.write(run, steps=330)
    report = write(run)
    with browser.started() as tab:
        tab.open(report.as_uri())
        text = tab.evaluate("document.body.innerText")
        for shown in (run.run_id, "20,219", "0.08740", "trained and evaluated", "rank 3", "hidden_sizes"):
            assert shown in text
        assert tab.evaluate("document.querySelectorAll('.stage[role=slider]').length") == 7
        tab.evaluate("document.querySelector('.stage').focus()")
        tab.key("ArrowRight")
        told = tab.evaluate("document.activeElement.getAttribute('aria-valuetext')")
        assert re.match(r"step 1: step \d", told), told
        assert tab.said == []
        assert [address for address in tab.asked if not address.startswith("data:")] == [report.as_uri()]
        hostile = '<main style="color: red"><script>document.title = "broken"</script>'
        report.write_text(report.read_text().replace("<main>", hostile))
        tab.open(report.as_uri())
        assert len([line for line in tab.said if "Content Security Policy" in line]) == 2, tab.said
        assert tab.evaluate("document.title") != "broken"
