"""What pages and consoles say of a run is the same everywhere, and can be read."""

import json
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

import compared_runs
import sample_run
from html_page import Page
from lockstep.catalog import compare, events, listing, show, status
from lockstep.catalog.compare import text
from lockstep.catalog.report import matrix, render, render_from_outside
from lockstep.catalog.report.scales import round_scale
from lockstep.catalog.report.steps import read
from lockstep.catalog.report.values import show_bytes
from lockstep.catalog.run import Run
from lockstep.cli import collectives_cost
from lockstep.files import read_json_lines
from lockstep.ui import live
from test_report_many import a_run


def failed(folder: Path) -> Run:
    run = sample_run.build(folder)
    run.events.unlink()
    events.append(run, "created", run_id=run.run_id, tag=None, parent=None, summary={})
    events.append(run, "started", attempt=1, process=status.process_identity())
    events.append(run, "finished", status="failed", cause="exception", message="it broke", rank=1)
    run.rank_log(0).write_text("nothing arrived from rank 1\n")
    run.rank_log(1).write_text("".join(f"line {number}\n" for number in range(90)) + "ZeroDivisionError\n")
    return run


def test_the_pages_of_a_failed_run_show_the_log_of_the_rank_that_failed(tmp_path):
    run = failed(tmp_path)
    page = Page(render_from_outside([run])).text
    assert "The end of logs/rank-1.log" in page and "ZeroDivisionError" in page
    assert "nothing arrived from rank 1" not in page
    log = live.state(run, 0, 0)["log"]
    assert log["name"] == "rank-1.log" and log["lines"][-1] == "ZeroDivisionError"


def test_the_speed_of_a_run_is_one_figure_in_lists_and_on_its_pages(tmp_path):
    run = a_run(tmp_path, "run-a", steps=60)
    lines = []
    for rank in (0, 1):
        whole = read_json_lines(run.metrics_file(rank))
        lines.append([line for line in whole if line["kind"] == "step"])
        for line in lines[rank]:
            line["step_seconds"] *= (
                3 if line["step"] % 2 == rank else 1
            )  # now one is the slowest, now the other
        compared_runs.write(run.metrics_file(rank), [*whole])
    slowest = max(sum(line["step_seconds"] for line in own) for own in lines)  # as aggregate.training has it
    steps = read(run)
    assert steps.seconds[-1] == pytest.approx(slowest)
    assert slowest < sum(max(line["step_seconds"] for line in step) for step in zip(*lines, strict=True))
    (row,) = listing.rows(tmp_path)
    assert live.state(run, 0, 0)["samples_per_second"] == row["samples_per_second"] > 0


def test_files_name_the_best_checkpoint_also_where_newer_ones_are_kept(tmp_path):
    run = sample_run.build(tmp_path)
    results = json.loads(run.results.read_text())
    results["evaluation"]["best"]["step"] = 20
    sample_run.dump(run.results, results)
    for step in range(10, 80, 10):
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    page = Page(render(run)).text
    assert "checkpoints/step-00000020 checkpoint, the best on validation" in page
    assert "step-00000030" not in page and "step-00000070" in page
    assert show.overview(run)["files"]["best checkpoint"].endswith("step-00000020")


def test_a_line_at_the_top_of_an_axis_stands_below_its_frame():
    for values, top in (([0.2, 1.0], 1.0), ([0.5, 2.0], None)):
        scale = round_scale(values, top=top)
        assert 0.9 < scale.place(max(values)) < 0.98
        assert max(scale.ticks) == max(values)
    assert round_scale([0.0, 1.9]).high == 2.0  # there is room already


def test_rare_and_frequent_mistakes_have_colours_of_their_own():
    counts = [[50, 1, 9], [0, 60, 0], [4, 0, 56]]
    levels = re.findall(r"cell wrong l([1-6])", str(matrix.heat_map(counts, ["a", "b", "c"])))
    assert len(set(levels)) == 3 and max(levels) == "6"


def test_a_page_of_several_runs_begins_with_what_differs_and_folds_what_does_not(tmp_path):
    runs = [a_run(tmp_path, "run-a"), a_run(tmp_path, "run-b", optimizer="sgd")]
    for run in runs:
        about = json.loads(run.provenance.read_text())
        about["machine"]["memory_bytes"] = 25_276_502_016
        sample_run.dump(run.provenance, about)
    markup = render_from_outside(runs)
    sections = re.findall(r'<section id="(\w+)"', markup)
    assert sections.index("parameters") < sections.index("learning") < sections.index("provenance")
    parameters = re.search(r'<section id="parameters".*?</section>', markup, re.DOTALL).group()
    shown, folded = parameters.split("<details>")
    assert "training.optimizer" in shown and "training.epochs" not in shown and "training.epochs" in folded
    assert "25.3 GB (25,276,502,016)" in Page(markup).text


def test_runs_whose_lines_coincide_are_told_apart_and_named(tmp_path):
    page = Page(render_from_outside([a_run(tmp_path, name) for name in ("run-a", "run-b")]))
    loss = [line for line in page.figures["charts"]["loss"]["lines"] if line["split"] == "validation"]
    assert [line.get("under", 0) for line in loss] == [1, 0]
    widths = {each.get("data-under") for tag, each in page.elements if tag == "polyline"}
    assert widths == {"1", None}
    assert "drawn in other widths: tag-run-a, tag-run-b." in page.text


def test_a_difference_has_the_digits_that_tell_it_and_its_size(tmp_path):
    assert text._digits(0.25, 0.5) == ("0.25", "0.5")
    assert text._digits(0.1 + 0.2, 0.3) == ("0.30000000000000004", "0.29999999999999999")
    rows = [
        {"key": "test loss", "a": 0.08740123456789, "b": 0.0912398765432},
        {"key": "machine.memory_bytes", "a": 25_276_502_016, "b": 8_319_995_904},
        {"key": "training.optimizer.name", "a": "adam", "b": "sgd"},
    ]
    shown = text._table(rows)
    assert shown.rows[0] == ("test loss", "0.0874012", "0.0912399", "+0.00384 (+4.39%)")
    assert shown.rows[1][1:3] == ("25.3 GB", "8.32 GB") and shown.rows[2][3] == ""
    a, b = (compared_runs.build(tmp_path, name) for name in "ab")
    found = compare.compare(a, b, [tmp_path])
    found["code"] |= {"files": ["one.json"], "diff": f"+{'x' * 28_000}\n+short\n", "computes": False}
    lines = next(block for heading, block in text.blocks(found) if heading == "Code")
    assert max(map(len, lines)) < 300 and "+short" in lines
    assert any("(27,761 more characters)" in line for line in lines)


def test_sizes_are_in_one_kind_of_units():
    sizes = (0, 999, 1000, 999_600, 1_500_000, 25_276_502_016, 2e12)
    shown = ["0 bytes", "999 bytes", "1 KB", "1 MB", "1.5 MB", "25.3 GB", "2 TB"]
    assert [show_bytes(size) for size in sizes] == shown


def test_a_cost_that_takes_seconds_says_what_is_simulated(monkeypatch, capsys):
    monkeypatch.setattr(collectives_cost, "SLOW_RANKS", 8)
    parser = ArgumentParser()
    collectives_cost.configure(parser)
    arguments = parser.parse_args(["--bytes", "4000", "--world-size", "4", "8", "--algorithm", "ring"])
    assert collectives_cost.run(arguments) == 0
    said = capsys.readouterr()
    assert said.err == "simulating ring on 8 ranks ...\n" and "simulating" not in said.out
