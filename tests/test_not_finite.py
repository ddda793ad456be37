"""A number that is not finite costs no result: it is recorded by its name, told, and drawn as a gap."""

import json
import math

import pytest

import exporting
from html_page import Page
from lockstep import strict_json
from lockstep.catalog import compare, listing
from lockstep.catalog.export.material import gather
from lockstep.catalog.export.points import points
from lockstep.catalog.facts import figures_of
from lockstep.catalog.query import Query, ask
from lockstep.catalog.report import render
from lockstep.catalog.run import Run
from lockstep.cli import main
from lockstep.files import read_json, read_json_lines, write_json
from test_query import make
from training import evaluate, results, train

JOB = ("training.epochs=3", "distributed.world_size=2")


def strict(text):
    """As a parser reads it that knows no NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_each_number_comes_back_as_it_was_written():
    written = {"loss": math.nan, "more": [math.inf, -math.inf, 1.5, 3], "text": "NaN is a word", "none": None}
    found = strict(strict_json.encode(written))
    assert found["loss"] == "NaN" and found["more"] == ["Infinity", "-Infinity", 1.5, 3]
    assert math.isnan(strict_json.real(found["loss"]))
    assert [strict_json.real(value) for value in found["more"]] == [math.inf, -math.inf, 1.5, 3.0]
    assert strict_json.real(found["text"]) is strict_json.real(None) is strict_json.real(True) is None
    assert [float(name) for name in ("Infinity", "-Infinity")] == [math.inf, -math.inf]


def test_a_value_that_contains_itself_is_still_refused():
    value: list[object] = [math.nan]
    value.append(value)
    with pytest.raises((ValueError, RecursionError)):
        strict_json.encode(value)


@pytest.mark.parametrize(
    ("model", "name"),
    [("{name: own_models:unjudged, after: 8}", "NaN"), ("own_models:one_infinite", "Infinity")],
)
def test_a_training_whose_validation_is_not_finite_keeps_its_results(server, tmp_path, model, name):
    run = train(server, tmp_path, f"model={model}", *JOB)
    judged = evaluate(server, run)
    for file in (run.results, run.run_log):
        if file.exists():
            strict(file.read_text())
    for file in run.metrics.iterdir():
        for line in file.read_text().splitlines():
            strict(line)
    assert judged["final"]["test"]["loss"] == name
    assert judged["final"]["test"]["confusion"], "who was taken for whom is known all the same"
    losses = [epoch["validation"]["loss"] for epoch in results(run)["epochs"]]
    assert losses[-1] == name
    finite = [number for number, loss in enumerate(losses, 1) if loss != name]
    assert judged["best"]["epoch"] == (finite[-1] if finite else 3), "the best is one that could be judged"
    assert (judged["best"]["validation"]["loss"] == name) == (not finite)
    notes = [line["message"] for line in read_json_lines(run.events) if line["event"] == "warning"]
    assert [note for note in notes if f"is {name}" in note and "validation loss of epoch" in note], notes
    assert any("outside of training is not finite" in note and f"test {name}" in note for note in notes)


def test_a_run_goes_on_from_where_its_validation_was_not_finite(server, tmp_path):
    model = "model={name: own_models:unjudged, after: 8}"
    half = train(server, tmp_path, model, "training.epochs=2", "distributed.world_size=1")
    rest = train(server, tmp_path, model, *JOB, start=max(half.checkpoints.iterdir()))
    assert results(rest)["epochs"][-1]["validation"]["loss"] == "NaN"
    assert evaluate(server, rest)["best"]["epoch"] == 3, "no epoch of its own could be judged"


def with_losses(run, test, epochs):
    """The run's record, with other losses in its results."""
    found = read_json(run.results)
    found["evaluation"]["final"]["test"]["loss"] = test
    for epoch, loss in zip(found["epochs"], epochs, strict=False):
        epoch["validation"]["loss"] = loss
    write_json(run.results, found)
    return found


def test_the_page_names_the_number_and_draws_a_gap(tmp_path):
    run = exporting.build(tmp_path, epochs=3, sealed=False)
    found = with_losses(run, math.nan, [0.5, math.inf])
    page = Page(render(run))
    drawn = {line["split"]: line for line in page.figures["charts"]["loss"]["lines"]}["validation"]
    assert drawn["values"][:2] == [0.5, None] and drawn["values"][2] == pytest.approx(
        found["epochs"][2]["validation"]["loss"]
    )
    assert "Test loss NaN" in page.text
    assert "Infinity" in page.text, "in the table of epochs"


def test_lists_name_it_and_put_it_last(tmp_path, capsys):
    for run_id, loss in (("a", "NaN"), ("b", 0.5), ("c", "Infinity"), ("d", 0.25), ("e", None)):
        make(tmp_path, run_id, accuracy=0.5, loss=loss)
    order = [row["run_id"] for row in ask(tmp_path, Query(sort="loss")).rows]
    assert order[:3] == ["d", "b", "c"] and set(order[3:]) == {"a", "e"}
    assert [row["run_id"] for row in ask(tmp_path, Query(sort="loss:desc")).rows][:3] == ["c", "b", "d"]
    assert {row["run_id"] for row in ask(tmp_path, Query(where=["loss<0.4"])).rows} == {"d"}
    assert {row["run_id"] for row in ask(tmp_path, Query(where=["loss>0.4"])).rows} == {"b", "c"}
    listing.rows(tmp_path)
    assert {row["run_id"]: row["loss"] for row in listing.rows(tmp_path)}["a"] == "NaN", "also from the cache"
    assert main(["list", "--catalog", str(tmp_path), "--json"]) == 0
    assert {row["run_id"]: row["loss"] for row in strict(capsys.readouterr().out)}["c"] == "Infinity"
    assert main(["list", "--catalog", str(tmp_path)]) == 0
    assert " NaN " in capsys.readouterr().out


@pytest.mark.parametrize("form", ["in-toto", "openlineage"])
def test_exports_stay_strict(tmp_path, capsys, form):
    run = exporting.build(tmp_path, sealed=False)
    with_losses(run, math.nan, [math.nan])
    assert main(["export", run.run_id, "--catalog", str(tmp_path), "--format", form]) == 0
    lines = capsys.readouterr().out
    for text in [lines] if form == "in-toto" else lines.splitlines():
        strict(text)


def test_points_for_tracking_servers_leave_a_gap(tmp_path):
    run = exporting.build(tmp_path, sealed=False)
    with_losses(run, math.nan, [])
    names = {point.name for point in points(gather(run))}
    assert "test.accuracy" in names and "test.loss" not in names
    assert figures_of(read_json(run.results))["test_loss"] == "NaN"


def step_line(step, loss, validation):
    line = {"kind": "step", "step": step, "loss": loss, "samples": 4, "grad_norm": 1.0, "learning_rate": 0.1}
    seen = {"loss": validation, "accuracy": 0.5, "samples": 4}
    return [line, {"kind": "epoch", "step": step, "epoch": step, "train": seen, "validation": seen}]


def write_metrics(run, *validations):
    lines = [line for step, value in enumerate(validations, 1) for line in step_line(step, 0.5, value)]
    run.metrics_file(0).write_text("".join(strict_json.encode(line) + "\n" for line in lines))


def test_diff_sees_where_only_one_of_two_is_not_finite(tmp_path):
    runs = [Run(tmp_path / name) for name in ("a", "b", "c")]
    for run, second in zip(runs, (math.nan, math.nan, 0.5), strict=True):
        run.metrics.mkdir(parents=True)
        write_metrics(run, 0.75, second)
    a, b, c = (compare.steps.read(run) for run in runs)

    def differences(one, other):
        return list(compare.quantities.validation(compare.quantities.Walk(), one, other, 2))

    assert differences(a, b) == [], "the same in both"
    (found,) = differences(a, c)
    assert found.quantity == "validation loss" and found.relative == math.inf
    assert strict(strict_json.encode(found.as_dict()))["a"] == "NaN"


@pytest.mark.slow
def test_the_command_ends_well_and_resumes(command):
    job = ("data=synthetic", "data.num_samples=200", "data.input_size=8", "model=own_models:one_infinite")
    job = (*job, "training.global_batch_size=40")
    folder = __file__.rpartition("/")[0]
    options = {"cwd": folder}
    output = command.run("--run-id", "r", *job, "training.epochs=1", **options)
    assert "Infinity" in output and "outside of training is not finite" in output
    strict((command.catalog / "r" / "run_log.json").read_text())
    assert read_json(command.catalog / "r" / "run_log.json")["parameters"]["test_loss"]["value"] == "Infinity"
    assert "training.epochs: 1 -> 2" in command.run(
        "--resume", "r", "--run-id", "s", "training.epochs=2", **options
    )
    for words in (["verify"], ["show", "--json"], ["show"]):
        assert main([words[0], "s", *words[1:], "--catalog", str(command.catalog)]) == 0
