"""Whatever a record holds, the reading commands end, write nothing outside, follow nothing out, and print no
control byte. The generator puts the same malice in names, tags, parameters, log lines and file names."""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import threading
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exporting
from lockstep import files
from lockstep.catalog import events, lineage, query, status, tail
from lockstep.catalog.list_text import table
from lockstep.catalog.report.values import number, show_scalar
from lockstep.catalog.run import RUN_ID, Run, find
from lockstep.catalog.text import cell, json_safe, lines_of, plain, show_value
from lockstep.cli import export as export_command
from lockstep.cli import list as list_command
from lockstep.cli import output
from lockstep.cli import show as show_command
from lockstep.errors import LockstepError, UsageError

MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECRET = "the secret of another folder"
MALICE = (
    *(
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</pre>",
        "&lt;",
        "'; DROP TABLE runs;--",
    ),
    *(
        "\x1b[2J",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x9b31m",
        "\x90q\x9c",
        "\x00",
        "\x07",
        "\r",
        "\x7f",
    ),
    *("\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\x85", "\ud800", "\U000e0041", "\ue000"),
    *(
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "a/../../b",
        "$(reboot)",
        "`reboot`",
        "%s%n",
        "{0.__class__}",
    ),
    *(
        "[red]x[/red]",
        "[/]",
        "\n",
        "\t",
        "x" * 5000,
        "",
        " ",
        "NaN",
        "-1",
        "1e999",
        "true",
        "null",
        "🙂",
        "日本語",
    ),
)
TEXTS = st.lists(st.sampled_from(MALICE) | st.text(max_size=12), min_size=1, max_size=3).map("".join)
VALUES = st.recursive(
    TEXTS | st.integers() | st.just(10**4000) | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def shown_safely(text):
    """No character that moves the cursor, colours, titles, turns the direction round, or is none at all."""
    bad = {
        char for char in set(text) if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }
    return not bad - {"\n", "\t"}


@pytest.fixture
def catalog(tmp_path):
    return tmp_path / ".catalog"


def call(command, *words):
    """What a command prints, or the message that it is refused with."""
    parser = argparse.ArgumentParser()
    command.configure(parser)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            command.run(parser.parse_args([str(word) for word in words]))
        except LockstepError as error:
            return files.printable(str(error))  # as the guard prints it
    return said.getvalue()


def every_reading(catalog, run_id):
    """All that the commands say of a run, in every form."""
    where = ["--catalog", catalog]
    said = [call(list_command, *where), call(show_command, run_id, *where)]
    said += [call(show_command, run_id, "rank", "0", *where), call(show_command, run_id, "train", *where)]
    said += [call(list_command, *where, "--where", "tag~x", "--sort", "loss")]
    for words in ([list_command], [show_command, run_id], [show_command, run_id, "rank", "0"]):
        text = call(*words, *where, "--json")
        assert text.isascii()
        with contextlib.suppress(ValueError):
            json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    for form in ("in-toto", "openlineage"):
        text = call(export_command, run_id, "--format", form, *where)
        assert text.isascii() or "\n" not in text.strip()
    return said


@MANY
@given(data=st.data())
def test_malice_in_any_recorded_text_is_shown_as_text_and_nothing_else(catalog, data):
    run = Run(catalog / "victim")
    for folder in (run.logs, run.metrics, run.checkpoints, run.data):
        folder.mkdir(parents=True, exist_ok=True)
    run.events.unlink(missing_ok=True)
    drawn = data.draw(st.lists(VALUES, min_size=12, max_size=12))
    told = iter(drawn)
    summary = {"dataset": next(told), "model": next(told), "strategy": next(told), "world_size": next(told)}
    parent = {"run_id": next(told), "checkpoint": next(told), "kind": next(told)}
    process = {**status.process_identity(), "start_ticks": 0}
    append = {"tag": next(told), "parent": parent, "summary": summary}
    lines = [
        {"event": "created", "time": "2026-11-20T11:51:46.123456Z", "run_id": "victim", **append},
        {"event": "started", "time": "2026-11-20T11:51:47.123456Z", "attempt": 1, "process": process},
        {"event": "step_started", "time": "2026-11-20T11:51:48.1Z", "step": next(told)},
        {"event": "warning", "time": "2026-11-20T11:51:48.2Z", "message": next(told)},
        {"event": "finished", "status": "failed", "time": "2026-11-20T11:51:49.1Z", "cause": next(told)},
    ]
    lines[-1] |= {"message": next(told), "rank": 0}
    run.events.write_text("".join(json.dumps({**line, "previous": "0" * 64}) + "\n" for line in lines))
    text = data.draw(TEXTS)
    run.rank_log(0).write_bytes(text.encode("utf-8", "surrogatepass") + b"\xff\xfe\n")
    step = {"kind": "step", "step": 1, "loss": text, "epoch": drawn[0], "step_seconds": drawn[1]}
    run.metrics_file(0).write_text(json.dumps(step) + "\n")
    run.provenance.write_text(
        json.dumps({"git": {"commit": text, "branch": text, "remote": text}, "argv": drawn})
    )
    run.results.write_text(
        json.dumps({"evaluation": {"final": {"test": drawn[2], text: text}}, "ranks": drawn})
    )
    (run.data / "data.json").write_text(json.dumps({"files": {text: drawn[3]}, "identity": text}))
    run.parameters.write_bytes(json.dumps({text: text}).encode())
    for said in every_reading(catalog, "victim"):
        assert shown_safely(said), repr(said)


def names(count):
    """Folder names as malice and chance make them."""
    draw = random.Random(11)
    alphabet = "ab0._-/\\ \x00\x1b\x07\u202e<>&\"'%\n\t.." + "".join(MALICE[:20])
    for each in range(count):
        length = draw.choice((1, 2, 5, 30, 64, 65, 200))
        yield draw.choice(MALICE) if each % 7 == 0 else "".join(draw.choices(alphabet, k=length))


def test_ten_thousand_names_are_safe_in_every_reader(catalog):
    exporting.build(catalog, "victim", epochs=1)
    outside = 0
    for name in names(10_000):
        for text in (
            cell(name),
            show_value([name]),
            files.printable(name),
            plain(table_of(name)),
            *lines_of(name),
        ):
            assert shown_safely(text), repr(name)
        assert "\n" not in cell(name) and len(cell(name)) <= 48
        json.dumps(json_safe({name: name}), allow_nan=False).encode("ascii")
        show_scalar(name)
        if os.sep not in name and name not in (".", ".."):
            assert RUN_ID.fullmatch(name) is None or "/" not in name
            try:
                found = find(catalog, name)
            except UsageError as error:
                assert shown_safely(str(error)), repr(name)
                outside += 1
            else:
                assert found.path.parent == catalog.resolve()
        assert lineage.tombstone(catalog, name) == {}
        with pytest.raises(OSError):
            files.open_inside(catalog, name)
    assert outside > 5000


def table_of(name):
    keys = ("run_id", "status", "cause", "tag", "strategy", "world_size", "dataset", "model")
    figures = (
        "accuracy",
        "loss",
        "test_accuracy",
        "test_loss",
        "samples_per_second",
        "seconds",
        "age_seconds",
    )
    return table([dict.fromkeys((*keys, *figures), name)])


def test_ten_thousand_values_are_numbers_that_can_be_shown_or_none():
    draw = random.Random(5)
    for _ in range(10_000):
        text = "".join(draw.choices("0123456789-+.eE", k=draw.choice((1, 3, 8, 400, 4000))))
        try:
            value = files.parse_json(text)
        except ValueError:
            continue
        found = number(value)
        assert found is None or abs(found) < 1e16
        cell(value), show_scalar(value)


HUGE = 100 << 20
BAD_CONTENT = {
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"evaluation": {"final": {"test": {"accuracy": NaN, "loss": -Infinity}}}, "event": "created"}',
    "giant integer": b'{"training": {"samples_per_second": ' + b"9" * 100_000 + b"}}",
    "large integer": b'{"ranks": [{"rank": ' + b"9" * 4000 + b', "samples": 1e400}]}',
    "invalid UTF-8": b'{"tag": "\xff\xfe\xc0\x80"}',
    "UTF-16": '{"event": "created"}'.encode("utf-16"),
    "nothing but lines": b"{}\n" * 200_000,
}
PARTS = (
    "events",
    "results",
    "provenance",
    "plan",
    "parameters",
    "metrics",
    "log",
    "data",
    "manifest",
    "run_log",
)


def parts(run):
    found = {"metrics": run.metrics_file(0), "log": run.rank_log(0), "data": run.data / "data.json"}
    return {name: found.get(name) or getattr(run, name) for name in PARTS}


@pytest.mark.parametrize("kind", BAD_CONTENT)
def test_content_made_to_hurt_is_a_gap_in_every_file_of_a_record(catalog, kind):
    run = exporting.build(catalog, "victim", epochs=1)
    for path in parts(run).values():
        path.write_bytes(BAD_CONTENT[kind])
    text = call(show_command, "victim", "--catalog", catalog)
    assert "victim" in text and shown_safely(text)
    for said in every_reading(catalog, "victim"):
        assert shown_safely(said)


def test_a_hundred_megabytes_are_not_read_in(catalog):
    run = exporting.build(catalog, "victim", epochs=1)
    for path in parts(run).values():
        with path.open("wb") as file:
            file.write(b'{"event": "created", "previous": "", "tag": "')
            file.truncate(HUGE)  # a hole: no disk is used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for said in every_reading(catalog, "victim"):
        assert shown_safely(said)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10  # KiB


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe", "folder", "loop", "device"])
def test_no_reader_follows_a_link_out_or_waits_for_a_pipe(catalog, tmp_path, kind):
    run = exporting.build(catalog, "victim", epochs=1)
    secret = tmp_path / "secret"
    secret.mkdir()
    targets = parts(run)
    del targets["events"]  # without it the folder is no run
    for name, path in targets.items():
        target = secret / path.name
        lines = {
            "kind": "step",
            "step": 7,
            "tag": SECRET,
            "loss": 0.5,
            "git": {"branch": SECRET, "commit": SECRET},
        }
        target.write_text(json.dumps(lines) + f"\n{SECRET}\n")
        if kind == "folder link" and path.parent != run.path:
            continue
        path.unlink(missing_ok=True)
        if kind in ("link", "folder link"):
            path.symlink_to(target)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        else:
            path.symlink_to("/dev/zero")
        assert name
    if kind == "folder link":
        for folder in (run.metrics, run.logs, run.data, run.checkpoints):
            folder.rename(tmp_path / f"was-{folder.name}")
            folder.symlink_to(secret)
    said = within(60, lambda: every_reading(catalog, "victim"))
    assert not any(SECRET in text for text in said)


def within(seconds, action):
    """The action's result; a failure where it hangs."""
    result = []
    thread = threading.Thread(target=lambda: result.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, "it hangs, or it raised"
    return result[0]


@pytest.mark.parametrize("what", ["events", "lock", "index", "tombstones"])
def test_pipes_where_the_catalog_itself_reads_do_not_hang_it(catalog, what):
    run = exporting.build(catalog, "victim", epochs=1, ending=None)
    other = exporting.build(catalog, "other", epochs=1)
    if what == "events":
        other.events.unlink()
        os.mkfifo(other.events)
    elif what == "lock":
        run.live.mkdir()
        os.mkfifo(run.lock)
    elif what == "index":
        os.mkfifo(catalog / ".index-runs")
        os.mkfifo(catalog / ".index-parameters")
    else:
        (catalog / ".tombstones").mkdir()
        os.mkfifo(catalog / ".tombstones" / "gone.json")
    text = within(60, lambda: call(list_command, "--catalog", catalog, "--where", "training.epochs>0"))
    assert "victim" in text
    assert "victim" in within(60, lambda: call(show_command, "victim", "--catalog", catalog))
    assert events.read(other) == [] or what != "events"


def test_runs_that_are_links_are_not_runs_of_the_catalog(catalog, tmp_path):
    exporting.build(tmp_path / "elsewhere", "foreign", epochs=1)
    catalog.mkdir()
    (catalog / "link").symlink_to(tmp_path / "elsewhere" / "foreign")
    assert query.ask(catalog, query.Query()).rows == []
    with pytest.raises(UsageError):
        find(catalog, "link")
    assert "foreign" in call(show_command, tmp_path / "elsewhere" / "foreign")


def test_names_in_a_record_lead_to_no_file_outside_it(catalog):
    run = exporting.build(catalog, "victim", epochs=1, ending=None)
    (catalog / "stolen.log").write_text(SECRET)
    for step in ("../../stolen", "/etc/passwd", "..", "x\0y", "a" * 5000):
        events.append(run, "started", attempt=1, process={"host": os.uname().nodename})
        events.append(run, "step_started", step=step)
        events.append(run, "finished", status="failed", cause="x", message="server 999999", rank=None)
        text = call(show_command, "victim", "--catalog", catalog)
        assert SECRET not in text and shown_safely(text)
        assert SECRET not in call(show_command, "victim", step, "--catalog", catalog)
    assert tail.last_lines(run.logs / ".." / ".." / "stolen.log", 5) == []


def test_a_terminal_gets_no_control_byte_of_a_records_file_names(catalog):
    run = exporting.build(catalog, "victim", epochs=1)
    evil = os.fsencode(run.logs) + b"/\x1b[31m\xff.log"
    with open(evil, "wb") as file:
        file.write(b"x")
    hostile = catalog.parent / "\x1b[2J\u202ecatalog"
    catalog.rename(hostile)
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", "show", "victim", "--catalog", str(hostile)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout and "\u202e".encode() not in done.stdout
    missing = [sys.executable, "-m", "lockstep.cli", "show", "\x1b[2Jnone", "--catalog", str(hostile)]
    done = subprocess.run(missing, capture_output=True, check=False)
    assert done.returncode == 2 and b"\x1b" not in done.stderr and b"Traceback" not in done.stderr


def test_a_long_table_is_safe_and_quick_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    said = Terminal()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    rows = [table_of(f"\x1b[31m{number}").rows[0] for number in range(500)]
    output.write_table(type(table_of("x"))(rows, table_of("x").headings))
    assert shown_safely(said.getvalue()) and len(said.getvalue().splitlines()) == len(rows) + 2
