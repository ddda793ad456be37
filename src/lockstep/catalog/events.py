"""events.jsonl: a run's history, appended to and never rewritten, each line with a digest.

``previous`` of a line is the SHA-256 of the bytes of the line before it, without its newline; 64 zeros for
the first. A kill or a power cut can leave a torn last line. It is left as it stands: the next append puts a
newline first, in the same write, so that the torn text becomes a line of its own. Such a line is no event and
carries no digest that could be trusted, so the digest of the line after it is taken over everything since the
start of the last whole event: that event and the torn text. Every byte but the last event's is accounted for
in this way; the seal (seal.py) accounts for the last one too.
"""

import errno
import hashlib
import json
import os
import re
import sys
import threading
import time as clock
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from lockstep import strict_json
from lockstep.catalog.report.values import moment
from lockstep.catalog.run import Run
from lockstep.files import fsync, fsync_folder, read_beginning

NO_PREVIOUS = "0" * 64
LONGEST_READ = 16 << 20  # far above any real history; a reader need not swallow what is none
MOST_READ = 20_000  # lines; of more than that, the first and the last are looked at
_RESERVED = {"event", "time", "previous", "uptime_us"}
_first_value = json.JSONDecoder().raw_decode  # json.loads without what it does around it, which takes as long
_STEPS = (b'{"event": "step_started"', b'{"event": "step_finished"')
_ENDS = (b'{"event": "created"', b'{"event": "started"', b'{"event": "finished"')
_one_at_a_time = threading.Lock()  # a run has one writing process; its threads take turns


def utc_now() -> str:
    """The present in the one form that records use: 2026-11-20T11:51:46.123456Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def uptime_us() -> int:
    """Microseconds since this machine was started, in its sleep too: within one boot they only go forward."""
    return clock.clock_gettime_ns(clock.CLOCK_BOOTTIME) // 1000


def append(run: Run, event: str, *, time: str | None = None, **fields: object) -> dict[str, Any]:
    """Add one event, on disk when this returns; returns it as written. ``time`` is now unless given.

    Beside the time stands ``uptime_us``, by a clock that nobody can set: lengths are measured by it.

    Raises OSError, naming the file, where the line could not be written whole (a full disk).
    """
    assert not _RESERVED & fields.keys(), f"fields that the chain itself writes: {_RESERVED & fields.keys()}"
    with _one_at_a_time:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(run.events, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            before = _since_last_event(descriptor, size)
            line = _line_after(
                before, event, time or utc_now(), {} if time else {"uptime_us": uptime_us()}, fields
            )
            _write(descriptor, run, line)
        finally:
            os.close(descriptor)
        if size == 0:
            fsync_folder(run.path)
    value: dict[str, Any] = json.loads(line)
    return value


def expected_line(content: bytes, event: str, time: str, **fields: object) -> bytes:
    """What ``append`` adds to a history of these bytes, to the byte."""
    block = b""
    for line, found in _lines(content):
        block = (b"" if found is not None else block) + line + b"\n"
    return _line_after(block if content.endswith(b"\n") else block[:-1], event, time, {}, fields)


def read(run: Run) -> list[dict[str, Any]]:
    """Every whole event, oldest first. Torn lines are skipped; a missing or unreadable file is empty."""
    return [event for event in map(_parse, _some_lines(run)) if event is not None]


def outline(run: Run) -> list[dict[str, Any]]:
    """Of ``read`` the first event, and those that say when and how the attempts began and ended: for lists.

    An attempt that has no end is given the last step that it noted. Lines that ``append`` writes can be told from each
    other by how they begin; where any is not of that form, this is all that ``read`` gives.
    """
    content = _content(run, LONGEST_READ)
    lines = [line for line in content.split(b"\n") if line.startswith(b'{"event": "')]
    # As many as there are names of the key: none stands elsewhere, and none is spelt with escapes.
    if content.count(b'"event"') != len(lines) or b"\\u00" in content or content.count(b"\n") >= MOST_READ:
        return read(run)
    found: list[dict[str, Any]] = []
    steps: list[bytes] = []  # of the attempt that goes on
    begun = False
    for line in lines:
        is_step = line.startswith(_STEPS)
        if is_step and begun:
            steps.append(line)
            continue
        if (found and not is_step and not line.startswith(_ENDS)) or (event := _parse(line)) is None:
            continue
        if event["event"] in ("started", "finished"):
            found += _last_with_time(steps)
            steps = []
        begun = begun or is_step or event["event"] == "started"
        found.append(event)
    return found + _last_with_time(steps)


def _last_with_time(lines: list[bytes]) -> list[dict[str, Any]]:
    for line in reversed(lines):
        event = _parse(line)
        if event is not None and moment(event.get("time")) is not None:
            return [event]
    return []


def torn_lines(run: Run) -> int:
    """How many lines are no event: writes that a kill cut short, or that were damaged."""
    return sum(_parse(line) is None for line in _some_lines(run) if line)


def _some_lines(run: Run) -> list[bytes]:
    lines = _content(run, LONGEST_READ).split(b"\n")
    return lines if len(lines) <= MOST_READ else lines[: MOST_READ // 2] + lines[-MOST_READ // 2 :]


def check_chain(run: Run) -> list[str]:
    """What is wrong with the chain, a sentence each; empty when every digest is right."""
    content = _content(run)
    if not content:
        return ["events.jsonl is missing or empty"]
    findings = []
    block = b""  # everything since the start of the last whole event
    last_is_event = True
    for number, (line, event) in enumerate(_lines(content), 1):
        if event is not None:
            if event["previous"] != _digest(block):
                findings.append(
                    f"events.jsonl line {number} does not fit what stands above it: bytes there were "
                    "changed, removed or put in"
                )
            block = b""
        block += line + b"\n"
        last_is_event = event is not None
    if content.endswith(b"\n") and not last_is_event:
        findings.append("events.jsonl: the last line is no event: its bytes were changed")
    return findings


def _content(run: Run, limit: int = sys.maxsize) -> bytes:
    try:
        return read_beginning(f"{run.path}/events.jsonl", limit)
    except OSError:
        return b""


def _lines(content: bytes) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line without its newline, and the event in it, where it is one."""
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    for line in lines:
        yield line, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{") or b'"event"' not in line:
        return None  # at a glance: a file of millions of other lines must not take minutes
    try:
        text = line.decode("utf-8", "surrogatepass")
        value, end = _first_value(text)
    except (ValueError, RecursionError):  # RecursionError: brackets nested by the thousand
        return None
    if end != len(text) and text[end:].strip(" \t\r\n"):
        return None
    whole = type(value) is dict and type(value.get("event")) is str and type(value.get("previous")) is str
    return value if whole else None


def _line_after(block: bytes, event: str, time: str, clock: dict[str, Any], fields: dict[str, Any]) -> bytes:
    """The line for an event that follows a block; after a torn block a newline comes first.

    Plain ASCII, so that showing the file raw is safe.
    """
    value = {"event": event, "time": time, "previous": _digest(block), **clock, **fields}
    newline = b"\n" if block and not block.endswith(b"\n") else b""
    return newline + strict_json.encode(value).encode() + b"\n"


def _digest(block: bytes) -> str:
    """The digest of lines, without the newline that ends the last of them."""
    return hashlib.sha256(block.removesuffix(b"\n")).hexdigest() if block else NO_PREVIOUS


def _since_last_event(descriptor: int, size: int) -> bytes:
    """The bytes from the start of the last whole event to the end, or the whole file where there is none."""
    wanted = 4096
    while True:
        offset = max(0, size - wanted)
        lines = re.findall(rb"[^\n]*\n|[^\n]+", os.pread(descriptor, size - offset, offset))
        # Where the window begins in the middle of a line, that line is left for a larger window.
        for index in range(len(lines) - 1, -1 if offset == 0 else 0, -1):
            if _parse(lines[index]) is not None:
                return b"".join(lines[index:])
        if offset == 0:
            return b"".join(lines)
        wanted *= 4


def _write(descriptor: int, run: Run, data: bytes) -> None:
    try:
        written = os.write(descriptor, data)
        fsync(descriptor)
    except OSError as error:
        error.filename = str(run.events)
        raise
    if written != len(data):
        raise OSError(
            errno.ENOSPC, f"only {written} of {len(data)} bytes of an event could be written", str(run.events)
        )
