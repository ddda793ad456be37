"""Promises that only a browser can keep: pages used by pointer and keyboard, at every size, on 1,000 runs."""

import itertools
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import browser
import sample_metrics
import sample_run
from lockstep.catalog import events, status
from lockstep.catalog.report import render_from_outside
from lockstep.catalog.run import Run
from lockstep.ui.answers import Site
from lockstep.ui.server import Server
from test_report_hostile import NAUGHTY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed"),
]
HOSTILE = '<img src=x onerror="document.title=1">'
RUNS = 1000


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    with browser.started() as started:
        yield started


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 finished runs with what the table shows of each; two of them with all files."""
    folder = tmp_path_factory.mktemp("many") / "catalog"
    for name, straggler in (("full-a", None), ("full-b", 1)):
        built = sample_run.build(folder / ".new", ranks=3)
        sample_metrics.write(built, steps=330, straggler=straggler)
        built.path.rename(folder / name)
    history = (folder / "full-a" / "events.jsonl").read_text().splitlines()
    results = json.loads((folder / "full-a" / "distributed_training_results.json").read_text())
    for index in range(RUNS - 2):
        run = Run(folder / f"run-{index:04d}")
        run.path.mkdir()
        when = (sample_run.BEGAN - timedelta(minutes=index + 1)).isoformat().replace("+00:00", "Z")
        tag = (None, "sweep", HOSTILE)[index % 3]
        summary = {
            "dataset": "digits",
            "model": "mlp",
            "strategy": ("ddp", "single")[index % 2],
            "world_size": 2,
        }
        ended = {"event": "finished", "time": when, "previous": "", "status": "succeeded"}
        created = {**json.loads(history[0]), "time": when, "tag": tag, "summary": summary}
        lines = [created, {**json.loads(history[1]), "time": when}, ended]
        run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        held = {"accuracy": index / RUNS, "loss": 1 - index / RUNS}
        test = {"accuracy": 1 - index / RUNS, "loss": index / RUNS}
        final = {"validation": held, "test": test}
        run.results.write_text(json.dumps({"evaluation": {"final": final}, "training": results["training"]}))
    return folder


@pytest.fixture(scope="module")
def server(catalog: Path) -> Iterator[Server]:
    with Server(Site(catalog), 0) as started:
        thread = threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def count(tab: browser.Browser) -> str:
    return str(tab.evaluate("document.querySelector('#count').textContent"))


def find(tab: browser.Browser, words: str) -> None:
    tab.evaluate(
        f"(() => {{ const find = document.querySelector('#find'); find.value = {json.dumps(words)};"
        "find.dispatchEvent(new Event('input')); })()"
    )


def column(tab: browser.Browser, name: str) -> list[str]:
    place = "[...document.querySelectorAll('#runs thead th')].findIndex((each) => each.innerText.startsWith(name))"
    rows = "[...document.querySelectorAll('#runs tbody tr')].map((row) => row.children[at].textContent)"
    return list(
        tab.evaluate(f"(() => {{ const name = {json.dumps(name)}; const at = {place}; return {rows}; }})()")
    )


def test_1000_runs_are_found_sorted_ticked_and_compared(tab: browser.Browser, server: Server) -> None:
    tab.open(server.url)
    tab.wait(f"document.querySelectorAll('#runs tbody tr').length === {RUNS}")
    assert count(tab) == "1,000 runs"
    assert tab.evaluate("document.title") == "Runs · Lockstep", "a hostile tag has run"
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in column(tab, "tag")
    find(tab, "accuracy>0.9 strategy=ddp")
    assert count(tab) == "50 of 1,000 runs"
    assert set(column(tab, "strategy")) == {"ddp"}
    find(tab, "sweep")
    assert set(column(tab, "tag")) == {"sweep"}
    find(tab, "nonsense>3")
    assert count(tab).startswith("no column nonsense: there are run, ")
    find(tab, "accuracy>97% accuracy<=0.98 run-")
    assert [float(each.rstrip("%")) for each in column(tab, "accuracy")] == pytest.approx(
        [97.1 + index / 10 for index in reversed(range(10))][::-1]
    )
    tab.evaluate("document.querySelector('[data-column=loss] button').click()")
    losses = [float(each) for each in column(tab, "loss")]
    assert losses == sorted(losses, reverse=True)
    tab.evaluate("document.querySelector('[data-column=loss] button').click()")
    losses = [float(each) for each in column(tab, "loss")]
    assert losses == sorted(losses)
    assert (
        tab.evaluate("document.querySelector('[data-column=loss]').getAttribute('aria-sort')") == "ascending"
    )
    address = tab.evaluate("location.href")
    tab.open("about:blank")
    tab.open(address)
    tab.wait("document.querySelectorAll('#runs tbody tr').length === 10")
    find(tab, "full")
    assert tab.evaluate("document.querySelector('#compare').disabled")
    tab.evaluate("document.querySelectorAll('#runs tbody input').forEach((box) => box.click())")
    assert tab.evaluate("document.querySelector('#compare').textContent") == "Compare 2 runs"
    tab.evaluate("document.querySelector('#compare').click()")
    tab.wait("document.querySelector('h1')?.textContent === '2 runs compared'")
    tab.wait("document.querySelectorAll('.stage[role=slider]').length > 5")
    assert tab.said == []
    assert {address for address in tab.asked if not address.startswith((server.url, "data:"))} == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone(tab: browser.Browser, server: Server, scheme: str) -> None:
    for path in ("", "run/full-a", "report?run=full-a", "report?run=full-a&run=full-b"):
        tab.open(server.url + path, width=390, height=800, scheme=scheme)
        tab.wait(
            "document.querySelectorAll('#runs tbody tr').length > 10 || document.querySelector('.stage .canvas')"
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert tab.evaluate("getComputedStyle(document.body).colorScheme || true")
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert dark == (scheme == "dark"), path
        assert tab.said == [], path


def test_running_run_is_drawn_as_it_goes_on_and_its_end_is_told(tab: browser.Browser, tmp_path: Path) -> None:
    run = sample_run.build(tmp_path / "catalog")
    run.results.unlink()
    run.events.unlink()
    events.append(run, "created", run_id=run.run_id, tag=HOSTILE, parent=None, summary={"model": HOSTILE})
    events.append(run, "started", attempt=1, process=status.process_identity())
    descriptor = status.hold(run)
    run.rank_log(0).write_text(f"{HOSTILE}\n")
    with Server(Site(run.catalog), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        tab.open(f"{server.url}run/{run.run_id}")
        tab.wait("document.querySelector('#state').textContent === 'running'")
        shown = "document.querySelector('#headline dd').textContent"
        for steps in (40, 330):
            sample_metrics.write(run, steps=steps, epochs_of=11)
            tab.wait(f"{shown} === '{steps}'")
            assert tab.evaluate("known.runs[0].last.length") == steps
            assert tab.evaluate("document.querySelectorAll('[data-chart=loss] path.line').length") == 3
        assert tab.evaluate("document.querySelectorAll('#lanes .rank-name').length") == 2
        events.append(run, "finished", status="failed", cause="hang", message=HOSTILE, rank=1)
        status.release(run, descriptor)
        tab.wait("document.querySelector('#state').textContent === 'failed: hang, rank 1'")
        assert tab.evaluate("document.querySelector('#message').textContent") == HOSTILE
        assert HOSTILE in tab.evaluate("document.querySelector('#log').textContent")
        assert tab.evaluate("document.title") == f"{run.run_id} · Lockstep"
        assert tab.evaluate("document.querySelectorAll('img').length") == 0
        assert tab.said == []
        tab.open("about:blank")
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def report(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("report") / "report.html"
    target.write_text(render_from_outside([Run(catalog / "full-a"), Run(catalog / "full-b")]))
    return target.as_uri()


def test_pointer_reads_values_and_drags_a_zoom(tab: browser.Browser, report: str) -> None:
    tab.open(report)
    place = tab.place("[data-chart=grad_norm] .stage")
    middle, y = place["x"] + 54 + (place["width"] - 68) / 2, place["y"] + 100
    tab.mouse("mouseMoved", middle, y)
    told = tab.evaluate("document.querySelector('[data-chart=grad_norm] .tip').innerText")
    assert told.startswith("step 16"), told
    figures = json.loads(tab.evaluate("document.querySelector('#figures').textContent"))
    index = int(told.split()[1]) - 1
    value = next(line for line in figures["charts"]["grad_norm"]["lines"] if line["run"] == 1)["values"][
        index
    ]
    assert f"{value:.6g}" in told
    assert tab.evaluate("document.querySelectorAll('[data-chart=loss] .guide').length") == 1, (
        "the cursor is shared"
    )
    tab.mouse("mousePressed", middle, y, button="left", clickCount=1)
    tab.mouse("mouseMoved", middle + 60, y, button="left", buttons=1)
    tab.mouse("mouseReleased", middle + 60, y, button="left", clickCount=1)
    low, high = tab.evaluate("view.domain")
    assert 160 < low < 170 < high < 230
    tab.evaluate("[...document.querySelectorAll('.tools button')].at(-1).click()")
    assert tab.evaluate("view.domain") is None
    assert tab.said == []


def test_keyboard_alone_reads_zooms_and_switches(tab: browser.Browser, report: str) -> None:
    tab.open(report)
    tab.evaluate("document.querySelector('[data-chart=learning_rate] .stage').focus()")
    spoken = "document.activeElement.getAttribute('aria-valuetext')"
    for key, wanted in (
        ("End", "step 330"),
        ("ArrowLeft", "step 329"),
        ("Home", "step 1:"),
        ("ArrowRight", "step 2:"),
    ):
        tab.key(key)
        assert tab.evaluate(spoken).startswith(wanted), key
    assert "0.001" in tab.evaluate(spoken)
    tab.key("+")
    low, high = tab.evaluate("view.domain")
    assert (low, high) == pytest.approx((1.5, 166), abs=1)
    tab.key("0")
    assert tab.evaluate("view.domain") is None
    tab.evaluate("document.querySelector('[data-lanes] .stage').focus()")
    tab.key("End")
    tab.key("ArrowDown")
    assert tab.evaluate(spoken).startswith("rank 1, step 330: data ")
    lines = "document.querySelectorAll('[data-chart=loss] path.line').length"
    before = tab.evaluate(lines)
    tab.evaluate("document.querySelector('[data-run=\"1\"] button').focus()")
    tab.key("Enter")
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    assert tab.evaluate(lines) == before / 2
    tab.evaluate("document.querySelector('input[value=seconds]').click()")
    assert "training time" in tab.evaluate("document.querySelector('[data-chart=loss] .canvas').textContent")
    assert tab.said == []


def test_focus_is_seen_and_every_control_has_a_name(
    tab: browser.Browser, report: str, server: Server
) -> None:
    for address in (report, server.url):
        tab.open(address)
        tab.wait("document.querySelectorAll('button').length > 3")
        nameless = tab.evaluate(
            "[...document.querySelectorAll('button, input, select, a[href], [tabindex=\"0\"]')].filter((each) =>"
            "!(each.getAttribute('aria-label') || each.labels?.length || each.textContent.trim())).length"
        )
        assert nameless == 0
        tab.key("Tab")
    tab.open(report)
    tab.evaluate("document.querySelector('[data-chart=loss] .stage').focus()")
    tab.key("ArrowRight")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_page_is_whole_without_script(tab: browser.Browser, report: str) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(report)
        for selector in (
            "svg.plot polyline.line",
            "svg.lane polygon",
            "table.compared tr",
            "#files .path",
            "details td",
        ):
            assert tab.evaluate(f"document.querySelectorAll('{selector}').length") > 1, selector
        assert tab.evaluate("document.querySelectorAll('.canvas, .tools:not([hidden])').length") == 0
        assert tab.evaluate("document.querySelector('svg.plot').getBoundingClientRect().height") > 200
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_page_prints(tab: browser.Browser, report: str) -> None:
    tab.open(report)
    tab.wait("document.querySelector('.canvas')")
    assert len(tab.call("Page.printToPDF", printBackground=True)["data"]) > 20_000


def test_nothing_recorded_runs_in_a_browser(tab: browser.Browser, tmp_path: Path) -> None:
    run = sample_run.build(tmp_path / "catalog")
    sample_metrics.write(run, steps=30)
    attacks = [attack.replace("alert(1)", "document.title=1") for attack in (*NAUGHTY, HOSTILE)]
    endless = itertools.cycle(attacks)
    results = json.loads(run.results.read_text())
    results |= {key: next(endless) for key in ("tag", "dataset", "model", "strategy")}
    results["evaluation"]["classes"] = [next(endless) for _ in range(10)]
    sample_run.dump(run.results, results)
    sample_run.dump(run.provenance, {attack: [attack, {attack: attack}] for attack in attacks})
    run.parameters.write_text(
        "".join(f"k{i}: {json.dumps(each)}\n" for i, each in enumerate(attacks)), errors="replace"
    )
    for runs in ([run], [run, run]):
        target = tmp_path / "r.html"
        target.write_text(render_from_outside(runs))
        tab.open(target.as_uri())
        tab.wait("document.querySelector('.canvas')")
        assert tab.evaluate("document.title").endswith("· Lockstep")
        assert tab.evaluate("document.querySelectorAll('img, iframe, script:not([id])').length") == 1
        assert tab.said == []


def test_report_of_long_unbroken_records_fits_a_phone(tab: browser.Browser, tmp_path: Path) -> None:
    run = sample_run.build(tmp_path / "catalog")
    sample_metrics.write(run, steps=30)
    endless = "x" * 300
    results = json.loads(run.results.read_text()) | dict.fromkeys(("tag", "dataset", "model"), endless)
    results["evaluation"]["classes"] = [endless] * 10
    sample_run.dump(run.results, results)
    sample_run.dump(run.provenance, {endless: endless, "nested": {endless: [endless, {endless: endless}]}})
    for step in ("train", endless):
        events.append(run, "step_finished", step=step, status=endless, seconds=1.0)
    events.append(run, "finished", status=endless, cause=endless, message=endless, rank=0)
    for runs in ([run], [run, run]):
        target = tmp_path / "r.html"
        target.write_text(render_from_outside(runs))
        for width in (390, 1200):
            tab.open(target.as_uri(), width=width, height=800)
            tab.wait("document.querySelector('.canvas')")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
