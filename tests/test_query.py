import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.catalog import events, index, listing, side_by_side, status
from lockstep.catalog.facts import facts_of
from lockstep.catalog.query import Query, ask
from lockstep.catalog.report.history import seconds_in, told_by
from lockstep.catalog.run import Run
from lockstep.cli import list as list_command
from lockstep.errors import UsageError

MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NOW = datetime.now(UTC)
PARAMETERS = """\
seed: {seed}
training:
  learning_rate: {rate}
  precision: fp32
  max_grad_norm: {norm}
model: {{name: mlp, hidden_sizes: [{width}, {width}]}}
distributed: {{world_size: 2, strategy: {{name: {strategy}, bucket_mb: 25.0}}}}
"""


def make(
    catalog, run_id, *, accuracy=None, loss=None, tag=None, strategy="ddp", days=0.0, end="succeeded", **more
):
    run = Run(catalog / run_id)
    run.path.mkdir(parents=True)
    made = (NOW - timedelta(days=days)).isoformat(timespec="microseconds").replace("+00:00", "Z")
    summary = {"dataset": "digits", "model": "mlp", "strategy": strategy, "world_size": 2}
    events.append(run, "created", time=made, run_id=run_id, tag=tag, parent=None, summary=summary)
    process = {**status.process_identity(), "start_ticks": 0}  # none of this process' own
    events.append(run, "started", time=made, attempt=1, process=process)
    if end:
        events.append(run, "finished", time=made, status=end, cause=None, message=None, rank=None)
    turned = {"accuracy": accuracy, "loss": loss}
    test = {key: 1 - value if isinstance(value, float) else value for key, value in turned.items()}
    final = {"validation": {"accuracy": accuracy, "loss": loss}, "test": test}
    run.results.write_text(json.dumps({"evaluation": {"final": final}, "training": more}))
    return run


def parameters(run, *, seed=42, rate=0.001, norm="null", width=64, strategy="ddp"):
    run.parameters.write_text(
        PARAMETERS.format(seed=seed, rate=rate, norm=norm, width=width, strategy=strategy)
    )


@pytest.fixture
def catalog(tmp_path):
    found = tmp_path / ".catalog"
    parameters(make(found, "good", accuracy=0.97, loss=0.1, tag="base", samples_per_second=100.0))
    parameters(
        make(found, "fair", accuracy=0.91, loss=0.3, strategy="allreduce", days=3, samples_per_second=900.0),
        rate=0.1,
        norm=1.0,
        width=32,
        strategy="allreduce",
        seed=7,
    )
    make(found, "lost", tag="Base-2", days=30, end=None)
    return found


def ids(catalog, *where, **query):
    return [row["run_id"] for row in ask(catalog, Query(where, **query)).rows]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["accuracy>0.95"], ["good"]),
        (["accuracy>95%"], ["good"]),
        (["accuracy<=0.97"], ["good", "fair"]),
        (["accuracy!=0.97"], ["fair", "lost"]),
        (["accuracy="], ["lost"]),
        (["accuracy!="], ["good", "fair"]),
        (["validation_loss<0.2"], ["good"]),
        (["test_accuracy>5%"], ["fair"]),
        (["test_loss<0.8"], ["fair"]),
        (["strategy=ddp"], ["good", "lost"]),
        (["strategy!=ddp"], ["fair"]),
        (["strategy == ddp", "accuracy >= 0.9"], ["good"]),
        (["tag~base"], ["good", "lost"]),
        (["tag!~base"], ["fair"]),
        (["tag=base"], ["good"]),
        (["tag="], ["fair"]),
        (["status=killed"], ["lost"]),
        (["samples/s>500"], ["fair"]),
        (["samples_per_second<500"], ["good"]),
        (["age>2d"], ["fair", "lost"]),
        (["age<36h"], ["good"]),
        (["duration<1min"], ["good", "fair", "lost"]),
        (["created<2020-01-01"], []),
        (["ranks=2"], ["good", "fair", "lost"]),
        (["training.learning_rate<=1e-3"], ["good"]),
        (["training.learning_rate=0.1"], ["fair"]),
        (["training.max_grad_norm>0.5"], ["fair"]),
        (["training.max_grad_norm=null"], ["good", "lost"]),
        (["model.hidden_sizes=[32, 32]"], ["fair"]),
        (["model.hidden_sizes~64"], ["good"]),
        (["distributed.strategy=allreduce"], ["fair"]),
        (["distributed.strategy.bucket_mb=25"], ["good", "fair"]),
        (["training.precision=fp32"], ["good", "fair"]),
        (["training.precision!=fp32"], ["lost"]),
        (["seed=7"], ["fair"]),
    ],
)
def test_conditions_on_columns_and_parameters_find_the_runs_that_fit(catalog, conditions, expected):
    assert ids(catalog, *conditions) == expected


def test_tag_status_since_limit_and_where_narrow_the_list_together(catalog):
    assert ids(catalog, tags=["base"]) == ["good"]
    assert ids(catalog, tags=["base", "Base-2"]) == ["good", "lost"]
    assert ids(catalog, statuses=["succeeded"]) == ["good", "fair"]
    assert ids(catalog, statuses=["killed,failed", "running"]) == ["lost"]
    assert ids(catalog, since="7d") == ["good", "fair"]
    assert ids(catalog, since="36h") == ["good"]
    assert ids(catalog, since=f"{NOW - timedelta(days=10):%Y-%m-%d}") == ["good", "fair"]
    assert ids(catalog, limit=2) == ["good", "fair"]
    assert ids(catalog, "accuracy>0", tags=["base", "Base-2"], since="7d", limit=5) == ["good"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("accuracy", ["good", "fair", "lost"]),
        ("accuracy:asc", ["fair", "good", "lost"]),
        ("loss", ["good", "fair", "lost"]),
        ("loss:desc", ["fair", "good", "lost"]),
        ("test_loss", ["fair", "good", "lost"]),
        ("test_accuracy:asc", ["good", "fair", "lost"]),
        ("samples/s", ["fair", "good", "lost"]),
        ("run", ["fair", "good", "lost"]),
        ("age", ["good", "fair", "lost"]),
        ("created:asc", ["lost", "fair", "good"]),
        ("training.learning_rate", ["good", "fair", "lost"]),
        ("training.learning_rate:desc", ["fair", "good", "lost"]),
        ("model.hidden_sizes", ["fair", "good", "lost"]),
    ],
)
def test_the_list_is_sorted_by_any_column_or_parameter_and_gaps_come_last(catalog, sort, expected):
    assert ids(catalog, sort=sort) == expected


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"where": ["acuracy>0.9"]}, r"columns are run, status.*did you mean accuracy\?"),
        ({"where": ["training.learning_rat>0.9"]}, r"did you mean training\.learning_rate\?"),
        ({"sort": "los"}, r"did you mean loss\?"),
        ({"sort": "loss:up"}, "COLUMN:asc or COLUMN:desc"),
        ({"sort": ""}, "COLUMN:asc"),
        ({"statuses": ["suceeded"]}, r"did you mean succeeded\?"),
        ({"where": ["accuracy"]}, "a column, one of ="),
        ({"where": [""]}, "a column, one of ="),
        ({"where": ["accuracy>high"]}, "found 'high', allowed: a number or a percentage"),
        ({"where": ["accuracy>nan"]}, "allowed: a number"),
        ({"where": ["accuracy>"]}, "a value is missing"),
        ({"where": ["accuracy~9"]}, "is a figure"),
        ({"where": ["strategy>ddp"]}, "is text"),
        ({"where": ["duration>long"]}, "a number with ms, s, min"),
        ({"where": ["created>yesterday"]}, "a date"),
        ({"where": ["training.learning_rate>small"]}, "allowed: a number"),
        ({"since": "soon"}, "7d or 2w, or a date"),
        ({"since": "2026-13-45"}, "7d or 2w, or a date"),
        ({"limit": 0}, "1 or more"),
    ],
)
def test_a_query_that_nothing_can_fit_says_what_is_allowed(catalog, query, message):
    with pytest.raises(UsageError, match=message) as caught:
        ask(catalog, Query(**query))
    assert caught.value.exit_status == 2


def command(*words):
    parser = argparse.ArgumentParser()
    list_command.configure(parser)
    return list_command.run(parser.parse_args([str(word) for word in words]))


def test_parameters_that_were_asked_for_are_shown_beside_the_columns(catalog, capsys):
    options = ["--catalog", catalog, "--where", "training.learning_rate>0", "--sort", "seed"]
    command(*options)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.endswith("training.learning_rate  seed")
    assert first.split()[-2:] == ["0.1", "7"] and second.split()[-2:] == ["0.001", "42"]
    command(*options, "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["parameters"]["training.learning_rate"] for row in rows] == [0.1, 0.001]
    command("--catalog", catalog, "--where", "accuracy>1")
    assert "none of the 3 runs" in capsys.readouterr().out


def test_an_unknown_column_ends_the_command_with_2_and_no_traceback(catalog):
    words = ["list", "--catalog", str(catalog), "--where", "acuracy>1"]
    command = [sys.executable, "-m", "lockstep.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@MANY
@given(where=st.lists(st.text(max_size=30) | st.from_regex(r"[a-z./]{1,12}[=!<>~]{1,2}.{0,12}"), max_size=2))
def test_any_condition_is_answered_or_refused(catalog, where):
    try:
        found = ids(catalog, *where)
    except UsageError:
        return
    assert set(found) <= {"good", "fair", "lost"}


@pytest.fixture
def cached(catalog, monkeypatch):
    """The catalog with caches, as one has whose files are older than the clock's tick."""
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)  # all files count as settled
    ids(catalog, "training.precision=fp32")
    assert (catalog / ".index-runs").exists() and (catalog / ".index-parameters").exists()
    return catalog


def test_runs_that_noted_themselves_when_they_ended_are_not_opened_by_the_first_listing(
    catalog, tmp_path, monkeypatch
):
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)
    wanted = fresh(catalog, tmp_path)
    for run_id in ("good", "fair", "lost"):
        listing.note(Run(catalog / run_id))
    with (catalog / ".index-runs.new").open("ab") as file:
        file.write(b'\xff torn\n[1, 2]\n{"a": [')  # lines that are none, the last one cut short
    opened = []
    monkeypatch.setattr(listing, "facts_of", lambda run: opened.append(run) or pytest.fail("opened"))
    assert told(catalog) == wanted
    monkeypatch.undo()
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    assert told(catalog) == wanted  # and the cache takes the notes in
    assert not [*catalog.glob(".index-*.new")] and (catalog / ".index-runs").exists()
    _finish(catalog)  # what goes on after its note is read anew
    assert told(catalog) == fresh(catalog, tmp_path) != wanted


def test_notes_that_cannot_be_written_or_read_change_nothing(catalog, tmp_path):
    wanted = fresh(catalog, tmp_path)
    os.mkfifo(catalog / ".index-runs.new")
    (catalog / ".index-parameters.new").symlink_to(tmp_path / "victim")
    listing.note(Run(catalog / "good"))
    assert told(catalog) == wanted
    assert not (tmp_path / "victim").exists()


def test_a_large_catalog_without_a_cache_is_read_in_several_processes_to_the_same_rows(
    catalog, tmp_path, monkeypatch
):
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)
    wanted = fresh(catalog, tmp_path)
    monkeypatch.setattr(index, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(side_by_side, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(side_by_side, "cores", lambda: 3)
    monkeypatch.setattr(side_by_side, "_alone", lambda: True)
    here = []
    real = listing.facts_of
    monkeypatch.setattr(listing, "facts_of", lambda run: (here.append(run.run_id), real(run))[1])
    assert told(catalog) == wanted
    assert len(set(here)) == 1  # the others were read elsewhere
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    assert told(catalog) == wanted
    copied = tmp_path / "copied"  # with a cache that is right about none of its runs
    shutil.copytree(catalog, copied)
    here.clear()
    assert told(copied) == wanted
    assert len(set(here)) == 1


def test_the_figures_of_a_run_that_ended_are_those_of_its_end_and_otherwise_of_its_results(catalog):
    run = make(catalog, "ended", accuracy=0.5, loss=0.7, end=None, samples_per_second=10.0)
    (row,) = ask(catalog, Query(["run=ended"])).rows
    assert (row["accuracy"], row["loss"], row["samples_per_second"]) == (0.5, 0.7, 10.0)
    figures = {"validation_accuracy": 0.75, "validation_loss": float(2), "samples_per_second": None}
    events.append(run, "finished", status="succeeded", figures=figures)
    (row,) = ask(catalog, Query(["run=ended"])).rows
    assert (row["accuracy"], row["loss"], row["samples_per_second"]) == (0.75, 2.0, None)
    events.append(run, "started", attempt=2, process=status.process_identity())
    (row,) = ask(catalog, Query(["run=ended"])).rows
    assert row["accuracy"] == 0.5
    for odd in (*({"validation_accuracy": value} for value in ("<b>", [1], True)), {}):
        events.append(run, "finished", status="succeeded", figures=odd)
        (row,) = ask(catalog, Query(["run=ended"])).rows
        assert row["accuracy"] is None


def test_loss_and_accuracy_are_those_of_validation_also_where_an_earlier_version_repeated_the_test_splits(
    catalog,
):
    run = make(catalog, "older", accuracy=0.8, loss=0.4, end=None)
    events.append(run, "finished", status="succeeded", figures={"accuracy": 0.2, "loss": 0.6})
    (row,) = ask(catalog, Query(["run=older"])).rows
    assert [row[key] for key in ("accuracy", "loss")] == [0.8, 0.4]
    assert [row[key] for key in ("test_accuracy", "test_loss")] == pytest.approx([0.2, 0.6])
    run.results.write_text(json.dumps({"evaluation": {"final": {"test": {"accuracy": 0.2, "loss": 0.6}}}}))
    (row,) = ask(catalog, Query(["run=older"])).rows
    assert (row["accuracy"], row["loss"], row["test_loss"]) == (
        None,
        None,
        0.6,
    )  # never the test's in their place


LINES = st.one_of(
    st.builds(
        lambda name, time, more: json.dumps({"event": name, "time": time, "previous": "0" * 64, **more}),
        st.sampled_from(["created", "started", "step_started", "step_finished", "finished", "sealed", "odd"]),
        st.none() | st.just("no time") | st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2)).map(str),
        st.sampled_from([
            {}, {"status": "failed"}, {"status": "succeeded", "figures": {"validation_loss": 1.5}}, {"attempt": 2},
            {"tag": "\u00fc"}, {"tag": '"event"'}, {"event ": "started"}, {"summary": {"strategy": "ddp"}},
        ]),
    ),
    st.sampled_from([
        "", "torn", '{"event": "started", "time": "2026-01-01', '{"event": "finished"}', '{"event": "step_started"',
        '{"event":"started","previous":""}', '{"event": "step_started", "time": 3, "previous": ""}',
        '{"event": "sealed", "event": "started", "previous": ""}', ' {"event": "started", "previous": ""}',
        '{"event": "sealed", "\\u0065vent": "started", "previous": ""}',
        '{"event": "finished", "status": "succeeded", "time": 3, "previous": ""} ',
    ]),
)  # fmt: skip


@MANY
@given(st.lists(LINES, max_size=10), st.booleans())
def test_facts_are_the_same_from_the_outline_of_a_history_and_from_all_of_it(tmp_path, lines, closed):
    run = Run(tmp_path)
    run.events.write_text("\n".join(lines) + "\n" * closed)
    quick = facts_of(run)
    with mock.patch.object(events, "outline", events.read):
        assert facts_of(run) == quick


TIMES = st.none() | st.just("no time") | st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 2)).map(str)
NAMES = st.sampled_from(["created", "started", "step_started", "step_finished", "finished", "sealed"])


@given(
    st.lists(st.fixed_dictionaries({"event": NAMES, "time": TIMES, "step": st.just("train")}), max_size=12)
)
def test_the_time_spent_in_a_list_is_that_of_the_whole_history(history):
    assert seconds_in(history) == told_by(history).seconds


def fresh(catalog, tmp_path):
    """The rows as the folders alone tell them."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(catalog, copy, ignore=shutil.ignore_patterns(".index-*"))
    rows = ask(copy, Query(["training.precision!="])).rows + ask(copy, Query()).rows
    return [{key: value for key, value in row.items() if key not in ("path", "age_seconds")} for row in rows]


def told(catalog):
    rows = ask(catalog, Query(["training.precision!="])).rows + ask(catalog, Query()).rows
    return [{key: value for key, value in row.items() if key not in ("path", "age_seconds")} for row in rows]


def _finish(catalog):
    events.append(Run(catalog / "lost"), "finished", status="failed", cause="hang", message=None, rank=1)


def _edit_keeping_size_and_time(catalog):
    path = Run(catalog / "good").results
    before = path.stat()
    path.write_text(path.read_text().replace("0.97", "0.12"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def _swap(catalog):
    (catalog / "good").rename(catalog / "aside")
    (catalog / "fair").rename(catalog / "good")
    (catalog / "aside").rename(catalog / "fair")


CHANGES = {
    "nothing": lambda catalog: None,
    "another run": lambda catalog: make(catalog, "more", accuracy=0.5),
    "a run removed": lambda catalog: shutil.rmtree(catalog / "fair"),
    "a run that ended": _finish,
    "an edit that keeps size and time": _edit_keeping_size_and_time,
    "two runs swapped": _swap,
    "results gone": lambda catalog: Run(catalog / "good").results.unlink(),
    "a torn history": lambda catalog: os.truncate(Run(catalog / "good").events, 700),
    "other parameters": lambda catalog: parameters(Run(catalog / "good"), rate=0.5, width=8),
    "parameters gone": lambda catalog: Run(catalog / "good").parameters.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_gives_the_same_rows_as_the_folders_after_any_change(cached, tmp_path, change):
    assert told(cached) == fresh(cached, tmp_path)
    CHANGES[change](cached)
    assert told(cached) == fresh(cached, tmp_path)
    assert told(cached) == fresh(cached, tmp_path)  # and from the cache that was written meanwhile


def test_a_cached_run_is_not_read_again(cached, monkeypatch):
    before = told(cached)
    monkeypatch.setattr(listing, "facts_of", lambda run: pytest.fail(f"{run.run_id} was read again"))
    assert told(cached) == before


def test_what_changed_a_moment_ago_is_not_cached(catalog, monkeypatch):
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    ids(catalog)
    assert not (catalog / ".index-runs").exists()
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    ids(catalog)
    assert (catalog / ".index-runs").exists()


@MANY
@given(data=st.data())
def test_a_damaged_or_forged_cache_counts_as_none_or_is_checked(cached, data):
    before = told(cached)
    for path in (cached / ".index-runs", cached / ".index-parameters"):
        content = path.read_bytes()
        kind = data.draw(st.sampled_from(["flip", "cut", "any", "none"]))
        if kind == "flip":
            place = data.draw(st.integers(0, len(content) - 1))
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x21]) + content[place + 1 :])
        elif kind == "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        elif kind == "any":
            path.write_bytes(data.draw(st.binary(max_size=200) | st.just(b"[" * 100_000)))
    assert told(cached) == before


@pytest.mark.parametrize(
    "body", ["[]", "null", '{"good": 3}', '{"good": ["SIGNATURE", 3]}', '{"good": ["SIGNATURE", [1,2]]}']
)
def test_a_cache_with_a_right_digest_and_wrong_values_is_not_believed(cached, body):
    import hashlib

    before = told(cached)
    for kind, files in (
        ("runs", ("events.jsonl", "distributed_training_results.json")),
        ("parameters", ("parameters.yaml",)),
    ):
        signature, _ = index.signature_of(tuple(f"{cached}/good/{name}" for name in files))
        text = body.replace("SIGNATURE", signature)
        path = cached / f".index-{kind}"
        head = json.loads(path.read_bytes().partition(b"\n")[0])
        head["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        path.write_text(json.dumps(head) + "\n" + text)
    assert told(cached) == before


def test_a_cache_of_another_version_is_ignored(cached, monkeypatch):
    monkeypatch.setattr(index, "__version__", "0.0.0")
    read = []
    real = listing.facts_of
    monkeypatch.setattr(listing, "facts_of", lambda run: (read.append(run.run_id), real(run))[1])
    ids(cached)
    assert set(read) == {"good", "fair", "lost"}


@pytest.mark.parametrize("obstacle", ["folder", "link", "read-only"])
def test_a_catalog_where_no_cache_can_be_written_is_listed_all_the_same(
    catalog, tmp_path, monkeypatch, obstacle
):
    monkeypatch.setattr(index, "WORTH_WRITING", 1)
    monkeypatch.setattr(index, "SETTLED_SECONDS", -3600.0)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    if obstacle == "folder":
        (catalog / ".index-runs").mkdir()
    elif obstacle == "link":
        (catalog / ".index-runs").symlink_to(victim)
    else:
        monkeypatch.setattr(
            index, "temporary_beside", lambda path: (_ for _ in ()).throw(PermissionError(13, "no"))
        )
    assert ids(catalog) == ["good", "fair", "lost"] == ids(catalog)
    assert victim.read_text() == "mine"


def test_a_running_run_is_told_from_a_killed_one_whatever_the_cache_says(cached):
    run = Run(cached / "lost")
    assert [row["status"] for row in ask(cached, Query(["run=lost"])).rows] == ["killed"]
    held = status.hold(run)
    try:
        assert [row["status"] for row in ask(cached, Query(["run=lost"])).rows] == ["running"]
    finally:
        status.release(run, held)
    assert [row["status"] for row in ask(cached, Query(["run=lost"])).rows] == ["killed"]
