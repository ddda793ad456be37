"""Promises of report.html: it shows the run, believes nothing, asks for nothing, and never fails."""

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import sample_run
from html_page import Page
from lockstep.catalog.report import render, write
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
            "355 MiB",
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


def test_every_epoch_answers_to_the_pointer_with_its_values(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, epochs=12)
    epochs = json.loads(run.results.read_text())["epochs"]
    text = Page(render(run)).text
    for epoch in epochs:
        loss, accuracy = epoch["train"]["loss"], epoch["validation"]["accuracy"]
        assert f"epoch {epoch['epoch']} train {loss:#.4g}" in text
        assert f"validation {accuracy:.1%}" in text


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


def test_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path, ranks=4)
    page = Page(write(run).read_text())
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.elements
    }
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


def test_policy_names_the_digest_of_the_one_style(tmp_path: Path) -> None:
    markup = render(sample_run.build(tmp_path))
    (style,) = re.findall(r"<style>(.*?)</style>", markup, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = (
        attributes["content"]
        for _, attributes in Page(markup).elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy


def test_absent_values_are_shown_as_a_dash(tmp_path: Path) -> None:
    run = sample_run.build(tmp_path)
    results = json.loads(run.results.read_text())
    results["epochs"][3]["train"]["loss"] = float("nan")
    results["evaluation"]["final"]["test"]["per_class"][0]["precision"] = None
    results["ranks"][0]["peak_rss_bytes"] = None
    sample_run.dump(run.results, results)
    text = Page(render(run)).text
    assert "epoch 4 train –" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
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
    texts += [("on-data", "data"), ("on-part", "compute"), ("on-part", "waiting"), ("on-part", "other")]
    for hue in "rw":
        texts += [("c-low", f"{hue}{level}") for level in (1, 2, 3)]
        texts += [("c-mid", f"{hue}4"), ("c-high", f"{hue}5"), ("c-high", f"{hue}6")]
    for ink, paper in texts:
        assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    for line in ("train", "validation", "data", "compute", "waiting", "other"):
        assert contrast(colours[line], colours["paper"]) >= 3, line


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def opened(page: Path, profile: Path) -> tuple[Page, list[str]]:
    """The page as Chromium holds it, offline, and what its console said."""
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
        *(
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ),
        "--host-resolver-rules=MAP * ~NOTFOUND",  # no name resolves: a request would fail, and say so
        f"--user-data-dir={profile}",
        *("--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=2000", "--dump-dom"),
    )
    command = [str(CHROMIUM), *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_shows_the_figures_offline_and_logs_no_error(tmp_path: Path) -> None:
    report = write(sample_run.build(tmp_path / "catalog", ranks=4))
    page, said = opened(report, tmp_path / "profile")
    for shown in (report.parent.name, "20,219", "0.08740", "trained and evaluated", "rank 3", "hidden_sizes"):
        assert shown in page.text
    assert said == []
    report.write_text(report.read_text().replace("<main>", '<main style="color: red">'))
    _, said = opened(report, tmp_path / "other profile")
    assert any("Content Security Policy" in line for line in said), "the policy is not in force, or not heard"
