import argparse
import contextlib
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample_run
from conftest import wait_until
from lockstep.catalog import events, listing, seal, status, tail
from lockstep.catalog.export import material
from lockstep.catalog.report.values import moment
from lockstep.catalog.run import Run
from lockstep.cli import list as list_command
from lockstep.cli import show as show_command
from lockstep.console import forgive
from lockstep.errors import UsageError

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RUN_ID = "20261120-115146-3f9a2c"
CALL = """
import argparse, sys
from lockstep.cli.{name} import configure, run
parser = argparse.ArgumentParser()
configure(parser)
status = run(parser.parse_args(sys.argv[1:]))
{after}
sys.exit(status)
"""


@pytest.fixture
def catalog(tmp_path):
    return tmp_path / ".catalog"


@pytest.fixture
def run(catalog):
    return sample_run.build(catalog)


def call(command, *words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def said(capsys, command, *words):
    assert call(command, *words) == 0
    return capsys.readouterr().out


def make(catalog, run_id, origin=None, **created):
    run = Run(catalog / run_id)
    run.path.mkdir(parents=True)
    run.logs.mkdir()
    run.metrics.mkdir()
    summary = {"dataset": "digits", "model": "mlp", "strategy": "ddp", "world_size": 2}
    events.append(run, "created", run_id=run_id, tag=None, parent=origin, summary=summary, **created)
    return run


def fail(run, **ending):
    events.append(run, "started", attempt=1, process=status.process_identity())
    events.append(run, "step_started", step="train")
    events.append(run, "step_finished", step="train", status="failed", seconds=1.5)
    ending = {"cause": "signal", "message": "rank 1 was ended by SIGSEGV", "rank": 1} | ending
    events.append(run, "finished", status="failed", **ending)


def test_list_shows_what_a_run_was_and_how_well_it_did(run, catalog, capsys):
    text = said(capsys, list_command, "--catalog", catalog)
    heading, line = text.splitlines()
    assert heading.split()[:3] == ["run", "status", "tag"]
    for word in (RUN_ID, "digits-baseline", "ddp", "digits", "mlp", "20,219", "7.00 s"):
        assert word in line
    assert line.index("97.9%") < line.index("0.07849") < line.index("95.4%") < line.index("0.0874")
    (row,) = json.loads(said(capsys, list_command, "--catalog", catalog, "--json"))
    assert (row["run_id"], row["world_size"], row["samples_per_second"]) == (RUN_ID, 2, 20218.7)
    assert row["status"] == "unknown"  # the sample ran on a host of its own


@pytest.mark.parametrize(
    "process", [{}, {"host": None}, {"host": 5, "boot_id": []}, {"other": 1}, {"pid": 7}, {"host": "far"}, 3]
)
def test_list_and_show_and_verify_call_an_open_run_the_same(catalog, capsys, process):
    one = make(catalog, "one")
    events.append(one, "started", attempt=1, process=process)
    state = status.of(one)
    row = listing.row(one, 0.0)
    shown = json.loads(said(capsys, show_command, "one", "--json", "--catalog", catalog))
    assert {(each["status"], each["cause"]) for each in (row, shown)} == {(state.word, state.cause)}


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_written_after_a_runs_end_does_not_make_it_longer(catalog, capsys, ended):
    one = make(catalog, "one")
    events.append(one, "started", time="2026-11-20T10:00:00.000000Z", attempt=1, process={})
    events.append(one, "step_started", time="2026-11-20T10:00:01.000000Z", step="train")
    if ended:
        events.append(one, "finished", time="2026-11-20T10:00:07.000000Z", status="succeeded")
    seconds = 7.0 if ended else 1.0
    assert listing.row(one, 0.0)["seconds"] == seconds
    events.append(one, "warning", message="the line above was cut short")
    seal.seal(one)
    events.append(one, "signed", file="seal/signature-1.json", signature_sha256="0" * 64)
    events.append(one, "anchored", file="seal/anchor-1.json")
    (row,) = listing.rows(catalog)
    assert row["seconds"] == seconds
    assert json.loads(said(capsys, show_command, "one", "--json", "--catalog", catalog))["seconds"] == seconds
    assert material.gather(one).ended == moment("2026-11-20T10:00:00.000000Z") + seconds


def test_list_is_newest_first_and_tells_the_causes_apart(catalog, capsys):
    for number, cause in enumerate(("diverged", "hang", "disk full")):
        fail(make(catalog, f"run-{number}"), cause=cause)
    lines = said(capsys, list_command, "--catalog", catalog).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["run-2", "run-1", "run-0"]
    assert ["failed: disk full" in lines[0], "failed: hang" in lines[1], "failed: diverged" in lines[2]]


def test_an_empty_catalog_says_how_to_make_a_run(catalog, capsys):
    assert "uv run pipeline.py" in said(capsys, list_command, "--catalog", catalog)
    assert json.loads(said(capsys, list_command, "--catalog", catalog, "--json")) == []


def test_show_tells_all_that_a_person_wants_to_know(run, catalog, capsys):
    text = said(capsys, show_command, "latest", "--catalog", catalog)
    for word in (
        "mlp on digits, ddp, ranks: 2",
        "8661eb7f0c1f on main, with changes",
        "bench-1",
        "--tag 'digits baseline'",
        "prepare_data",
        "0.81 s",
        "95.4%",
        "10,109",
        "distributed_training_results.json",
    ):
        assert word in text
    value = json.loads(said(capsys, show_command, RUN_ID[:12], "--catalog", catalog, "--json"))
    assert [step["step"] for step in value["steps"]][:2] == ["prepare_data", "setup_distributed"]
    assert value["evaluation"]["final"]["test"]["loss"] == 0.0874
    assert len(value["ranks"]) == 2


def test_a_failed_run_shows_its_cause_message_and_the_failing_ranks_log(catalog, capsys):
    run = make(catalog, "broken")
    run.rank_log(1).write_text(
        "".join(f"line {number}\n" for number in range(100)) + "Traceback: the reason\n"
    )
    run.rank_log(0).write_text("of no interest\n")
    fail(run)
    text = said(capsys, show_command, "broken", "--catalog", catalog)
    for word in ("failed: signal, rank 1", "ended by SIGSEGV", "Traceback: the reason", "line 99"):
        assert word in text
    assert "of no interest" not in text and "line 5\n" not in text


def test_a_failed_step_without_a_rank_shows_the_steps_log(catalog, capsys):
    run = make(catalog, "broken")
    (run.logs / "train.log").write_text("no data there\n")
    fail(run, rank=None, cause="exception")
    assert "no data there" in said(capsys, show_command, "broken", "--catalog", catalog)
    text = said(capsys, show_command, "broken", "train", "--catalog", catalog)
    assert "no data there" in text and "1.50 s" in text and "failed" in text


def test_a_moved_run_is_shown_from_its_folder(run, tmp_path, capsys):
    shutil.move(run.path, tmp_path / "elsewhere")
    text = said(capsys, show_command, tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere" / "parameters.yaml") in text
    assert str(run.path) not in text


def test_show_rank_sums_up_its_metrics_and_shows_its_log(run, catalog, capsys):
    step = {"kind": "step", "epoch": 3, "samples": 64, "step_seconds": 0.004, "compute_seconds": 0.003}
    lines = [json.dumps({**step, "step": number, "loss": 1 / number}) for number in range(1, 9)]
    run.metrics_file(1).write_text("\n".join(lines) + '\n{"kind": "step", "ste')
    run.rank_log(1).write_text("first\n 10%\r 50%\r100%\nlast\n")
    text = said(capsys, show_command, RUN_ID, "rank", 1, "--catalog", catalog, "--lines", 2)
    assert "step 8, epoch 3, loss 0.1250, 16,000 samples/s" in text
    assert text.endswith("100%\nlast\n")
    value = json.loads(said(capsys, show_command, RUN_ID, "rank", 1, "--catalog", catalog, "--json"))
    assert value["step"]["step"] == 8 and value["log"] == ["first", "100%", "last"]
    run.metrics_file(1, attempt=2).write_text(json.dumps({**step, "step": 20, "loss": 0.5}) + "\n")
    assert "step 20," in said(capsys, show_command, RUN_ID, "rank", 1, "--catalog", catalog)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing"], "no run 'nothing'"),
        ([RUN_ID, "rank", "2"], "no rank 2: its ranks are 0 to 1"),
        ([RUN_ID, "rank"], "rank is followed by one number"),
        ([RUN_ID, "rank", "-"], "rank is followed by one number"),
        ([RUN_ID, "rank", "٣"], "rank is followed by one number"),
        ([RUN_ID, "lunch"], "no step 'lunch': its steps are prepare_data"),
        ([RUN_ID, "1"], "no step '1': its steps are prepare_data.*; a rank is asked for with `rank 1`"),
        ([RUN_ID, "../../etc/x"], "no step"),
        ([RUN_ID, "train", "again"], "is no part of a run"),
        ([RUN_ID, "--follow"], "--follow goes with rank N"),
        ([RUN_ID, "rank", "0", "--lines", "-3"], "0 or more"),
        (["/tmp/"], "not a run's folder"),
    ],
)
def test_wrong_usage_says_what_is_allowed(run, catalog, words, expected):
    with pytest.raises(UsageError, match=expected):
        call(show_command, *words, "--catalog", catalog)


def child(catalog, run_id, parent, checkpoint="step-00000120", **more):
    origin = {"run_id": parent, "checkpoint": checkpoint, "manifest_sha256": "0" * 64, **more}
    return make(catalog, run_id, origin=origin)


def test_show_tells_where_a_run_comes_from_and_what_came_of_it(catalog, capsys):
    make(catalog, "first")
    child(catalog, "second", "first")
    child(catalog, "third", "second", "step-00000240")
    child(catalog, "again", "second", None, kind="reproduced")
    (catalog / ".tombstones").mkdir()
    (catalog / ".tombstones" / "gone.json").write_text('{"run_id": "gone", "parent": {"run_id": "second"}}')
    text = said(capsys, show_command, "second", "--catalog", catalog)
    for line in (
        "resumed from first (killed), step-00000120",
        "child: third (killed), step-00000240, resumed from this",
        "child: again (killed), no checkpoint: from the beginning, reproduced from this",
        "child: gone (collected: its tombstone is left)",
    ):
        assert line in text
    value = json.loads(said(capsys, show_command, "third", "--catalog", catalog, "--json"))
    assert [each["run_id"] for each in value["lineage"]["ancestors"]] == ["second", "first"]
    assert value["lineage"]["children"] == []


def test_lineage_goes_on_past_collected_runs_and_never_in_circles(catalog, capsys):
    (catalog / ".tombstones").mkdir(parents=True)
    child(catalog, "young", "gone")
    child(catalog, "self", "self")
    child(catalog, "left", "right")
    child(catalog, "right", "left")
    child(catalog, "hostile", "../../etc")
    parent = {"run_id": "never-here", "checkpoint": "step-00000001"}
    (catalog / ".tombstones" / "gone.json").write_text(json.dumps({"parent": parent}))

    def ancestors(name):
        value = json.loads(said(capsys, show_command, name, "--catalog", catalog, "--json"))
        return [(each["run_id"], each["status"]) for each in value["lineage"]["ancestors"]]

    assert ancestors("young") == [("gone", "collected"), ("never-here", "absent")]
    assert ancestors("left") == [("right", "killed")]
    assert ancestors("self") == ancestors("hostile") == []


def test_the_timeline_draws_each_step_where_and_as_long_as_it_ran(run, catalog, capsys):
    text = said(capsys, show_command, "latest", "--catalog", catalog)
    lines = {line.split()[0]: line for line in text.partition("Pipeline")[2].splitlines() if "s " in line}
    assert lines["train"].count("█") == 19  # 5.67 s of 7.00 s, on 24 cells
    assert lines["train"].index("█") > lines["prepare_data"].index("█")
    assert lines["evaluate"].rindex("█") > lines["train"].rindex("█")
    assert "▏" in lines["setup_distributed"] and "0.83 s" in lines["train"]  # began after 0.81 s and 0.02 s


def test_a_killed_run_shows_how_far_its_ranks_came_and_what_they_said_last(catalog, capsys):
    run = make(catalog, "dead")
    events.append(run, "started", attempt=1, process={**status.process_identity(), "start_ticks": 0})
    events.append(run, "step_started", step="train")
    step = {"kind": "step", "step": 41, "epoch": 5, "loss": 0.25, "samples": 64, "step_seconds": 0.01}
    run.metrics_file(0).write_text(json.dumps(step) + "\n")
    run.metrics_file(1).write_text(json.dumps({**step, "step": 42}) + "\n")
    run.rank_log(0).write_text("of old\n")
    run.rank_log(1).write_text("the last words\n")
    os.utime(run.rank_log(0), (1, 1))
    text = said(capsys, show_command, "dead", "--catalog", catalog)
    for word in ("killed: process gone", "as far as they came", " 41 ", " 42 ", "6,400", "the last words"):
        assert word in text
    assert "of old" not in text and "this record was not completed" in text
    train = next(line for line in text.splitlines() if line.startswith("train"))
    assert "killed" in train


def test_a_running_run_shows_its_open_step_and_its_ranks(live, catalog, capsys):
    run, process = live
    events.append(run, "step_started", step="train")
    process.stdin.write("one\n")
    wait_until(lambda: "step" in tail.latest(run.metrics_file(0)))
    text = said(capsys, show_command, "live", "--catalog", catalog)
    train = next(line for line in text.splitlines() if line.startswith("train"))
    assert "running" in train and "▒" in train
    assert "as far as they came" in text and "seal" not in text


def test_a_failure_of_a_server_shows_the_servers_log(catalog, capsys):
    run = make(catalog, "served")
    (run.logs / "server-1.log").write_text("the server said this\n")
    run.rank_log(0).write_text("of no interest\n")
    fail(run, rank=None, cause="exception", message="server 1 raised ValueError")
    assert "the server said this" in said(capsys, show_command, "served", "--catalog", catalog)


def test_a_failing_rank_that_said_nothing_leaves_the_word_to_its_step(catalog, capsys):
    run = make(catalog, "silent")
    run.rank_log(1).write_text("\n")
    (run.logs / "train.log").write_text("what the step said\n")
    fail(run)
    assert "what the step said" in said(capsys, show_command, "silent", "--catalog", catalog)


def test_show_names_data_code_and_seal(run, catalog, capsys):
    run.data.mkdir()
    files = {"train": {"samples": 1294}, "test": {"samples": 360}}
    identity = "c1da7b0945587d5d"
    sample_run.dump(
        run.data / "data.json", {"files": files, "identity": identity, "made_from": {"dataset": "digits"}}
    )
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    events.append(run, "sealed", manifest_sha256="ab" * 32)
    text = said(capsys, show_command, "latest", "--catalog", catalog)
    for word in (
        "digits, identity c1da7b094558, samples: 1,294 train, 360 test",
        "not committed (source.patch, 1.83 KB)",
        "manifest abababababab",
    ):
        assert word in text
    events.append(run, "started", attempt=2, process=status.process_identity())
    value = json.loads(said(capsys, show_command, "latest", "--catalog", catalog, "--json"))
    assert value["sealed"] is None  # of the attempt before


def test_damaged_files_of_a_record_are_named(run, catalog, capsys):
    run.results.write_text('{"training": {')
    run.provenance.unlink()
    run.provenance.symlink_to("/etc/hostname")
    run.plan.write_text("[]")
    with run.events.open("a") as file:
        file.write('{"event": "fin')
    text = said(capsys, show_command, "latest", "--catalog", catalog)
    for word in (
        "distributed_training_results.json is torn or no JSON",
        "provenance.json cannot be read",
        "distributed.json holds no JSON object",
        "events.jsonl has 1 line that is no event",
    ):
        assert word in text


def test_an_ambiguous_beginning_lists_the_candidates(catalog, capsys):
    for number in range(23):
        make(catalog, f"sweep-{number:02}")
    with pytest.raises(UsageError, match="fits 23 runs") as caught:
        call(show_command, "sweep", "--catalog", catalog)
    assert "sweep-22" in str(caught.value) and "and 3 more" in str(caught.value)
    assert "sweep-05" in said(capsys, show_command, "sweep-05", "--catalog", catalog)
    with pytest.raises(UsageError, match=r"did you mean sweep-05\?"):
        call(show_command, "sweeep-05", "--catalog", catalog)


def script(name, after=""):
    return [sys.executable, "-c", CALL.format(name=name, after=after)]


@pytest.mark.parametrize(
    ("name", "words"), [("list", []), ("show", ["latest"]), ("show", ["latest", "rank", "0"])]
)
def test_reading_imports_neither_torch_nor_runnable_nor_what_only_a_terminal_needs(run, catalog, name, words):
    heavy = {"torch", "runnable", "numpy", "pydantic", "yaml", "rich"}
    after = f"sys.stderr.write(' '.join({heavy} & set(sys.modules)))"
    command = [*script(name, after), *words, "--catalog", str(catalog)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_gets_tables_and_no_recorded_control_bytes_or_markup(catalog):
    run = make(catalog, "hostile")
    fail(run, message="\x1b]0;title\x07\x1b[2J [red]text[/red]", cause="\x1b[31m[bold]", rank="[/]")
    for words in (["list"], ["show", "hostile"]):
        output = in_a_terminal([*script(words[0]), *words[1:], "--catalog", str(catalog)])
        assert b"\\x1b[31m[bold]" in output
        assert b"\x1b]0" not in output and b"\x1b[2J" not in output


def in_a_terminal(command):
    """What a command writes to a terminal."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=terminal, stderr=subprocess.STDOUT, env=environment)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the other end has been closed
        while part := os.read(controller, 65536):
            output += part
    os.close(controller)
    assert process.wait() == 0, output
    return output


KEYS = (
    *("event", "time", "status", "cause", "rank", "message", "process", "pid", "host", "attempt", "step"),
    *("seconds", "summary", "tag", "parent", "kind", "loss", "samples", "step_seconds", "git", "commit"),
    *("dirty", "machine", "cores", "argv", "training", "evaluation", "final", "best", "test", "accuracy"),
    *("ranks", "world_size", "epoch", "previous", "created", "started", "finished"),
)
HOSTILE = (
    st.sampled_from(
        [b"", b"{", b"[]", b"null", b"NaN", b"[" * 50_000, b"\0" * 100, b'"' + b"x" * 100_000 + b'"']
    )
    | st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner | st.sampled_from(["created", "started", "finished", "failed", "step", "step_started"]),
                max_size=6,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)


@MANY
@given(data=st.data())
def test_damaged_and_hostile_records_are_shown_as_far_as_they_can_be_read(run, catalog, data, capsys):
    lines = data.draw(st.lists(HOSTILE, max_size=4))
    run.events.write_bytes(b"\n".join(lines) if lines else b"")
    for path in (run.results, run.provenance, run.plan, run.metrics_file(0), run.rank_log(0), run.run_log):
        path.write_bytes(data.draw(HOSTILE))
    assert RUN_ID in said(capsys, list_command, "--catalog", catalog)
    json.loads(said(capsys, list_command, "--catalog", catalog, "--json"))
    assert RUN_ID in said(capsys, show_command, RUN_ID, "--catalog", catalog)
    json.loads(said(capsys, show_command, RUN_ID, "--catalog", catalog, "--json"))
    run.plan.unlink()
    said(capsys, show_command, RUN_ID, "rank", 0, "--catalog", catalog)
    json.loads(said(capsys, show_command, RUN_ID, "rank", 0, "--catalog", catalog, "--json"))


@MANY
@given(data=st.data())
def test_a_record_cut_anywhere_is_still_listed_and_shown(run, catalog, data, capsys):
    path = data.draw(st.sampled_from([run.events, run.results, run.provenance, run.plan]))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert RUN_ID in said(capsys, list_command, "--catalog", catalog)
    assert RUN_ID in said(capsys, show_command, RUN_ID, "--catalog", catalog)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "missing"])
def test_what_is_no_file_is_passed_over(run, catalog, kind, capsys):
    for path in (run.results, run.provenance, run.plan, run.rank_log(0), run.metrics_file(0), run.parameters):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path)
    assert RUN_ID in said(capsys, list_command, "--catalog", catalog)
    assert RUN_ID in said(capsys, show_command, RUN_ID, "--catalog", catalog)
    said(capsys, show_command, RUN_ID, "rank", 0, "--catalog", catalog)


LIVE = """
import sys, time, json
from pathlib import Path
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
run = Run(Path(sys.argv[1]))
held = status.hold(run)
events.append(run, "started", attempt=1, process=status.process_identity())
print("held", flush=True)
for number, word in enumerate(sys.stdin):
    if word.strip() == "end":
        break
    with run.rank_log(0).open("a") as log:
        log.write(word)
    with run.metrics_file(0).open("a") as metrics:
        metrics.write(json.dumps({"kind": "step", "step": number + 1, "loss": 0.5}) + "\\n")
with run.rank_log(0).open("a") as log:
    log.write("unfinished last line")
events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
"""


@pytest.fixture
def live(catalog):
    run = make(catalog, "live")
    run.rank_log(0).write_text("begun\n")
    command = [sys.executable, "-c", LIVE, str(run.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout.readline() == "held\n"
    yield run, process
    process.kill()
    process.communicate()


def test_follow_shows_each_line_as_it_comes_until_the_run_ends(live):
    run, process = live
    lines = tail.follow(run, 0, 5, pause_seconds=0.01)
    assert next(lines) == "begun"
    for word in ("one", "two"):
        process.stdin.write(f"{word}\n")
        got = {next(lines), next(lines)}  # the line of the log and the step, in either order
        assert word in got and any(line.startswith("step ") for line in got)
    process.stdin.write("end\n")
    assert list(lines) == ["unfinished last line"]


def test_follow_ends_when_the_run_is_killed(live):
    run, process = live
    lines = tail.follow(run, 0, 5, pause_seconds=0.01)
    assert next(lines) == "begun"
    process.stdin.write("one\n")
    assert {next(lines), next(lines)} >= {"one"}
    process.kill()
    process.wait()
    assert list(lines) == []
    assert status.of(run).word == "killed"


def test_ctrl_c_while_following_exits_with_130(live, catalog):
    _, process = live
    process.stdin.write("one\n")
    follower = subprocess.Popen(
        [*script("show"), "live", "rank", "0", "--follow", "--catalog", str(catalog)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "one" not in follower.stdout.readline():
        assert follower.poll() is None
    time.sleep(0.05)
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=20)
    assert (follower.returncode, errors) == (130, "")


def test_the_last_lines_of_a_large_log_are_found_without_reading_it_all(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(200_000)) + b"x" * 10_000)
    *lines, longest = tail.last_lines(log, 3)
    assert lines == ["line 199998", "line 199999"]
    assert len(longest) == tail.LONGEST_LINE + 1
    assert tail.last_lines(log, 0) == [] and tail.last_lines(tmp_path / "none", 3) == []


def test_columns_are_in_line_also_where_the_encoding_lacks_a_tags_letters(catalog, monkeypatch):
    for run_id, tag in (("first", "größe"), ("second", "plain"), ("third", "x" * 60)):
        (catalog / run_id).mkdir(parents=True)
        summary = {"strategy": "ddp"}
        events.append(Run(catalog / run_id), "created", run_id=run_id, tag=tag, parent=None, summary=summary)
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    forgive(stream)
    monkeypatch.setattr(sys, "stdout", stream)
    call(list_command, "--catalog", catalog)
    stream.flush()
    heading, *rows = stream.buffer.getvalue().decode("ascii").splitlines()
    column = heading.index("strategy")
    assert len(rows) == 3 and {row[column - 2 : column] for row in rows} == {"  "}
    assert all(row[column] != " " for row in rows), rows
