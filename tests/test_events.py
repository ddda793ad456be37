import itertools
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.catalog import events
from lockstep.catalog.run import Run

ONE_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@ONE_FOLDER
@given(st.lists(VALUES, min_size=1, max_size=5))
def test_what_is_appended_is_read_back_and_the_chain_holds(run, values):
    run.events.unlink(missing_ok=True)
    written = [events.append(run, "warning", message=value) for value in values]
    assert events.read(run) == written
    assert [event["message"] for event in written] == values
    assert events.check_chain(run) == []


def test_each_line_carries_the_digest_of_the_line_before(run):
    import hashlib

    for name in ("created", "started", "finished"):
        events.append(run, name)
    lines = run.events.read_bytes().splitlines()
    assert json.loads(lines[0])["previous"] == "0" * 64
    for before, after in itertools.pairwise(lines):
        assert json.loads(after)["previous"] == hashlib.sha256(before).hexdigest()


@ONE_FOLDER
@given(st.data())
def test_a_torn_last_line_is_kept_skipped_and_accounted_for(run, data):
    run.events.unlink(missing_ok=True)
    expected = []
    for _ in range(data.draw(st.integers(1, 4))):
        expected += [events.append(run, "warning", message="é\r\n" * data.draw(st.integers(0, 3)))]
        whole = run.events.read_bytes()
        line = whole[:-1].rpartition(b"\n")[2]
        cut = data.draw(st.integers(1, len(line) - 1))
        run.events.write_bytes(whole + line[:cut])
        assert events.read(run) == expected
        assert events.check_chain(run) == []
    expected += [events.append(run, "finished", status="failed")]
    assert events.read(run) == expected
    assert events.check_chain(run) == []
    # No byte before the last event can change unseen, torn text included.
    content = bytearray(run.events.read_bytes())
    last = content[:-1].rfind(b"\n")
    position = data.draw(st.integers(0, last - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    run.events.write_bytes(content)
    assert events.check_chain(run) != []


def test_a_whole_line_that_lost_only_its_newline_still_counts(run):
    first = events.append(run, "created")
    run.events.write_bytes(run.events.read_bytes()[:-1])
    second = events.append(run, "started", attempt=1)
    assert events.read(run) == [first, second]
    assert events.check_chain(run) == []


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_removed_or_moved_line_is_found(run, removed):
    for number in range(4):
        events.append(run, "warning", message=str(number))
    lines = run.events.read_bytes().splitlines(keepends=True)
    run.events.write_bytes(b"".join(lines[:removed] + lines[removed + 1 :]))
    assert events.check_chain(run)
    lines[removed], lines[removed + 1] = lines[removed + 1], lines[removed]
    run.events.write_bytes(b"".join(lines))
    assert events.check_chain(run)


def test_a_line_longer_than_the_window_is_chained_too(run):
    for size in (10, 5_000, 100_000, 10):
        events.append(run, "warning", message="x" * size)
    assert events.check_chain(run) == []
    assert len(events.read(run)) == 4


def test_a_write_is_one_call_and_is_on_disk_before_append_returns(run, monkeypatch):
    calls = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda fd, data: calls.append("write") or write(fd, data))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    events.append(run, "created")
    events.append(run, "started")
    assert calls == ["write", "fsync", "fsync", "write", "fsync"]  # the second: the folder, for the new name


def test_a_full_disk_names_the_file_and_leaves_the_history_usable(run, monkeypatch):
    first = events.append(run, "created")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    with pytest.raises(OSError, match=r"events\.jsonl"):
        events.append(run, "started")
    monkeypatch.undo()
    second = events.append(run, "finished", status="failed")
    assert events.read(run) == [first, second]
    assert events.check_chain(run) == []


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"[" * 100_000, b"null\n3\n[]\n{}\n", b"\xff\xfe\n", b'{"event": 3}\n']
)
def test_what_is_no_history_reads_as_empty(run, content):
    run.events.write_bytes(content)
    assert events.read(run) == []
    events.append(run, "created")
    assert len(events.read(run)) == 1


def test_threads_of_the_writing_process_take_turns(run):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: events.append(run, "warning", message=number), range(40)))
    assert {event["message"] for event in events.read(run)} == set(range(40))
    assert events.check_chain(run) == []


def told_by_json(line):
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("event", "previous"))
    return value if whole and line.startswith(b"{") and b'"event"' in line else None


@given(
    st.builds(
        lambda start, value, end: start + json.dumps(value).encode() + end,
        st.sampled_from([b"", b" ", b"{", b"\xef\xbb\xbf"]),
        st.fixed_dictionaries({"event": VALUES, "previous": VALUES, "more": VALUES})
        | st.fixed_dictionaries({"event": st.text(), "previous": st.text(), "more": VALUES}),
        st.sampled_from([b"", b" ", b"\r", b"\t ", b"x", b"{}", b"\xa0", b"\xff", b"\x00", b"\xed\xa0\x80"]),
    )
)
def test_a_line_is_an_event_where_it_is_one_to_the_json_library(line):
    assert events._parse(line) == told_by_json(line)
