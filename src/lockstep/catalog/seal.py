"""The seal: a manifest of the whole run, written when everything else has been, and its verification.

The manifest covers every file, and events.jsonl up to a stated length; the `sealed` event that follows
carries the manifest's digest, and its time stands in the manifest. So no byte of a sealed run, not even of
that last event, can change unseen. The digest of that event's line is the run's *head*: one number that
stands for every byte, which an anchor or a signature (anchor.py, signature.py) keeps or vouches for.

What may follow the seal: `signed` events, each of which is made from a file in `signatures/` to the byte, and
the events of another attempt, which ends in a seal of its own.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.finding import Finding, of_history
from lockstep.catalog.manifest import (
    MANIFEST,
    SIGNATURES,
    compare,
    entries,
    history_differences,
    manifest_bytes,
    outside_the_seal,
    read_manifest,
    read_up_to,
    verify_folder,
    walk,
    write_manifest,
)
from lockstep.catalog.run import Run
from lockstep.files import parse_json, read_object, read_plain, write_atomically

__all__ = ["State", "check", "head_of", "seal", "verify_folder", "verify_seal", "write_manifest"]

Digest = Callable[[Path], str]
# What another attempt writes anew, and in which of its steps; it only adds to logs, and only removes or adds
# checkpoints (in training) and metrics.
_WRITTEN_ANEW: dict[str, set[str]] = {
    "distributed.json": {"setup_distributed"},
    "distributed_model_checkpoint.pt": {"train"},
    "distributed_training_results.json": {"aggregate_metrics", "evaluate"},
    "report.html": {"report"},
    "run_log.json": set(),
}


@dataclass
class State:
    """What the seal proves. ``heads`` are the digests of all `sealed` lines, oldest first.

    ``current``: the last seal covers the folder as it stands. ``went_on``: another attempt began after it and
    has not been sealed; ``rewritten`` are the files which that attempt wrote over.
    """

    findings: list[Finding] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    current: bool = False
    went_on: bool = False
    rewritten: list[str] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> str | None:
        """The digest that stands for the last seal and all before it."""
        return self.heads[-1] if self.heads else None


def seal(run: Run, known: Mapping[str, str] | None = None) -> str:
    """Write the run's manifest, then the `sealed` event that carries its digest; returns that digest.

    ``known`` holds digests by path in the run, which the caller has taken already; those files are not read
    again. The manifest of an earlier attempt is kept beside the new one.
    """
    _keep_earlier(run)
    files = entries(run.path, known or {}, outside_the_seal(run.path))
    history = run.events.read_bytes()
    time = events.utc_now()
    content = manifest_bytes(
        {
            "algorithm": "sha256",
            "events": {"bytes": len(history), "sha256": hashlib.sha256(history).hexdigest()},
            "files": files,
            "time": time,
        }
    )
    write_atomically(run.manifest, content)
    digest = hashlib.sha256(content).hexdigest()
    events.append(run, "sealed", time=time, manifest_sha256=digest)
    return digest


def verify_seal(run: Run) -> list[str]:
    """All that is wrong with a sealed run: its files, its history, and that the two vouch for each other."""
    state = check(run)
    missing = [] if state.heads or state.findings else [Finding(MANIFEST, "is missing")]
    return [str(finding) for finding in [*missing, *state.findings]]


def head_of(run: Run) -> str | None:
    """The digest of the last `sealed` line; None for a run that was never sealed."""
    return next(reversed(heads_of(run)), None)


def heads_of(run: Run) -> list[str]:
    """The digests of all `sealed` lines, oldest first."""
    lines = _sealed_lines(read_up_to(run.events, events.LONGEST_READ))
    return [hashlib.sha256(line).hexdigest() for line in lines]


def check(run: Run, digest: Digest | None = None) -> State:
    """Compare the folder with its seal, where it has one; without one, only the history's chain is checked."""
    history = read_up_to(run.events, events.LONGEST_READ + 1)
    if len(history) > events.LONGEST_READ:
        problem = f"has more than {events.LONGEST_READ:,} bytes, which no history has"
        return State([Finding("events.jsonl", problem)])
    state = State([of_history(sentence) for sentence in events.check_chain(run)])
    state.heads = [hashlib.sha256(line).hexdigest() for line in _sealed_lines(history)]
    state.findings += _signature_files(run, history)
    manifest, problems = read_manifest(run.path)
    if not state.heads and not os.path.lexists(run.manifest):
        return state
    if manifest is None or "events" not in manifest:
        state.findings += problems or [Finding(MANIFEST, "is no seal of a run")]
        return state
    state.findings += history_differences(run.path, manifest["events"])
    state.files = manifest["files"]
    covered = manifest["events"]["bytes"]
    tail = _after_the_seal(run, history, covered, manifest["time"])
    state.went_on = tail.startswith(b'{"event": "started"')
    if state.went_on and _ended_well(history[:covered]):
        state.went_on = False
        problem = "goes on after the seal of a run that succeeded, which gets no other attempt: it was added"
        state.findings.append(Finding("events.jsonl", problem))
        tail = b""
    differences = compare(run.path, state.files, dict(walk(run.path, outside_the_seal(run.path))), digest)
    if state.went_on:
        _tell_apart(run, state, differences, _steps_begun(tail))
        return state
    if tail == b"?":
        problem = f"does not tell of this {MANIFEST}: one of the two was changed, or the run was not sealed to the end"
        state.findings.append(Finding("events.jsonl", problem))
        if state.heads:
            problem = "is not the one that events.jsonl tells of: one of the two was changed"
            state.findings.append(Finding(MANIFEST, problem))
    elif tail:
        problem = "goes on after the seal with what no attempt wrote: it was added"
        state.findings.append(Finding("events.jsonl", problem))
    state.findings += differences
    state.current = not state.findings
    return state


def _sealed_lines(history: bytes) -> list[bytes]:
    return [line for line, event in _events(history) if event.get("event") == "sealed"]


def _events(history: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines that look like what the seal writes, and what stands in them."""
    found = []
    for line in history.split(b"\n"):
        if line.startswith((b'{"event": "sealed"', b'{"event": "signed"')):
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append((line, value))
    return found


def _after_the_seal(run: Run, history: bytes, covered: int, time: str) -> bytes:
    """The history behind the seal and its signatures; b"?" where the line of the seal is not as it was written."""
    before, rest = history[:covered], history[covered:]
    digest = hashlib.sha256(read_up_to(run.manifest, None)).hexdigest()
    line = events.expected_line(before, "sealed", time, manifest_sha256=digest)
    if not rest.startswith(line):
        return b"?"
    number = sum(event.get("event") == "signed" for _, event in _events(before))
    while rest.startswith(line):
        before, rest = before + line, rest[len(line) :]
        if not rest.startswith(b'{"event": "signed"'):
            break
        number += 1
        line = signed_line(run, before, number)
    return rest


def signature_file(run: Run, number: int) -> Path:
    """Where the run's signatures are kept, counted from 1 over its whole history."""
    return run.path / SIGNATURES / f"{number}.json"


def signed_line(run: Run, before: bytes, number: int) -> bytes:
    """The event that follows a history for a signature in its file, to the byte: the file says its time."""
    file = signature_file(run, number)
    time, digest = read_object(file, depth=2).get("time"), _digest_of(file)
    known = isinstance(time, str) and digest
    fields = {"file": f"{SIGNATURES}/{number}.json", "signature_sha256": digest}
    return events.expected_line(before, "signed", str(time), **fields) if known else b"?"


def _digest_of(file: Path) -> str | None:
    try:
        return hashlib.sha256(read_plain(file, 1 << 20, depth=2)).hexdigest()
    except OSError:
        return None


def _signature_files(run: Run, history: bytes) -> list[Finding]:
    """Every signature that the history tells of is there as it was, and no other file beside them."""
    signed = [event for _, event in _events(history) if event.get("event") == "signed"]
    findings = []
    expected = set()
    for number, event in enumerate(signed, 1):
        file = signature_file(run, number)
        expected.add(file.name)
        digest = _digest_of(file)
        if digest is None or digest != event.get("signature_sha256"):
            problem = "is missing or unreadable" if digest is None else "holds other bytes than were signed"
            findings.append(Finding(f"{SIGNATURES}/{file.name}", f"{problem}, and the history tells of it"))
    folder = run.path / SIGNATURES
    if folder.is_dir() and not folder.is_symlink():
        found = [name for name, _ in walk(folder) if name not in expected]
        problem = "is not in the history: it was added"
        return findings + [Finding(f"{SIGNATURES}/{name}", problem) for name in found]
    if os.path.lexists(folder):
        findings.append(Finding(SIGNATURES, "is no folder: it was added"))
    return findings


def _ended_well(history: bytes) -> bool:
    """Whether the last attempt that a history tells of succeeded."""
    ends = [event for event in _all(history) if event.get("event") in ("started", "finished")]
    return bool(ends) and ends[-1].get("status") == "succeeded"


def _steps_begun(history: bytes) -> set[str]:
    """The steps of the pipeline that a piece of history tells the beginning of."""
    return {str(event.get("step")) for event in _all(history) if event.get("event") == "step_started"}


def _all(history: bytes) -> list[dict[str, Any]]:
    found = []
    for line in history.split(b"\n"):
        with contextlib.suppress(ValueError):
            if isinstance(value := parse_json(line), dict):
                found.append(value)
    return found


def _tell_apart(run: Run, state: State, differences: list[Finding], begun: set[str]) -> None:
    """Of a run that went on after its seal: what the next attempt may have done, and what it never does."""
    for each in differences:
        name, added, gone = each.file, each.file not in state.files, each.problem == "is missing"
        writers = {"train"} if name.startswith("checkpoints/") and gone else _WRITTEN_ANEW.get(name)
        anew = writers is not None and (not writers or bool(writers & begun))
        longer = name.startswith("logs/") and not added and _begins_as(run.path / name, state.files[name])
        if added or anew or longer:
            state.rewritten += [name] * (not added)
        else:
            state.findings.append(each)


def _begins_as(path: Path, entry: Mapping[str, Any]) -> bool:
    content = read_up_to(path, entry["bytes"])
    return bool(hashlib.sha256(content).hexdigest() == entry["sha256"])


def _keep_earlier(run: Run) -> None:
    """Keep the manifest of an earlier attempt as manifest.attempt-N.json, before a new one is written."""
    try:
        content = run.manifest.read_bytes()
    except FileNotFoundError:
        return
    digest = hashlib.sha256(content).hexdigest()
    started, number = 0, None
    for event in events.read(run):
        started += event["event"] == "started"
        if event["event"] == "sealed" and event.get("manifest_sha256") == digest:
            number = max(1, started)
    if number is None:
        return  # that seal was cut short before the history told of it: it vouches for nothing
    while (kept := run.path / f"manifest.attempt-{number}.json").exists():
        if kept.read_bytes() == content:
            return  # an earlier seal was cut short right after this
        number += 1
    write_atomically(kept, content)
