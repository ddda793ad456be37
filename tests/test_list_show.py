import argparse
import contextlib
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
from lockstep.catalog import events, status, tail
from lockstep.catalog.run import Run
from lockstep.cli import list as list_command
from lockstep.cli import show as show_command
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


def make(catalog, run_id, **created):
    run = Run(catalog / run_id)
    run.path.mkdir(parents=True)
    run.logs.mkdir()
    run.metrics.mkdir()
    summary = {"dataset": "digits", "model": "mlp", "strategy": "ddp", "world_size": 2}
    events.append(run, "created", run_id=run_id, tag=None, parent=None, summary=summary, **created)
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
    for word in (RUN_ID, "digits-baseline", "ddp", "digits", "mlp", "95.4%", "0.0874", "20,219", "7.00 s"):
        assert word in line
    (row,) = json.loads(said(capsys, list_command, "--catalog", catalog, "--json"))
    assert (row["run_id"], row["world_size"], row["samples_per_second"]) == (RUN_ID, 2, 20218.7)
    assert row["status"] == "unknown"  # the sample ran on a host of its own


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
