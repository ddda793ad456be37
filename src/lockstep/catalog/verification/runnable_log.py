"""Runnable's own log of the pipeline against our history of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lockstep.catalog.finding import Finding
from lockstep.catalog.report.values import mapping, objects
from lockstep.catalog.verification.record import Record, brief, differs

_WORDS = {"succeeded": "SUCCESS", "failed": "FAIL", "interrupted": "FAIL"}


def findings(record: Record, digest: Callable[[Path], str]) -> Iterator[Finding]:
    """Steps and statuses that the two tell differently; nothing where Runnable was not used."""
    log = record.run_log
    steps = {name: step for name, step in mapping(log.get("steps")).items() if _is_task(step)}
    last = _last_statuses(record)
    if not log:
        if last and not record.run.run_log.exists() and _ended(record):
            yield Finding("run_log.json", "is missing, and the history tells of steps of the pipeline")
        return
    if record.last("finished").get("cause") == "disk full":
        return  # it could not be brought up to date, and says so by its absence from the disk
    tag = record.created.get("tag")
    if (log.get("tag") or None) != tag:
        yield differs("run_log.json", "the tag is", log.get("tag"), "events.jsonl", tag)
    yield from _steps(steps, last)
    ending = record.last("finished").get("status") if _ended(record) else None
    if isinstance(ending, str) and ending in _WORDS and log.get("status") != _WORDS[ending]:
        yield differs("run_log.json", "the run ended with", log.get("status"), "events.jsonl", ending)
    if _ended(record):  # an attempt that goes on writes to the logs that were put before
        yield from _hashes(record, steps, digest)


def _steps(steps: dict[str, Any], last: dict[str, str | None]) -> Iterator[Finding]:
    """Step by step; one that a death left open may stand anyhow in the log."""
    for name, word in last.items():
        status = steps[name].get("status") if name in steps else None
        if word is None:
            continue
        if name not in steps:
            yield Finding("run_log.json", f"has no step {brief(name)}, which the history has as {word}")
        elif status != _WORDS.get(word):
            yield differs("run_log.json", f"step {brief(name)} ended with", status, "events.jsonl", word)
    for name in sorted(steps.keys() - last.keys()):
        yield Finding("run_log.json", f"has a step {brief(name)} that the history does not know")


def _is_task(step: object) -> bool:
    return mapping(step).get("step_type") == "task"


def _ended(record: Record) -> bool:
    """Whether the last attempt has an end."""
    words = [event["event"] for event in record.history if event["event"] in ("started", "finished")]
    return words[-1:] == ["finished"]


def _last_statuses(record: Record) -> dict[str, str | None]:
    """The last ending of each step; None for one that was begun again and has no end."""
    last: dict[str, str | None] = {}
    for event in record.history:
        step = event.get("step")
        if not isinstance(step, str):
            continue
        if event["event"] == "step_started":
            last[step] = None
        elif event["event"] == "step_finished" and event.get("status") != "skipped":
            last[step] = str(event.get("status"))
    return last


def _hashes(record: Record, steps: dict[str, Any], digest_of: Callable[[Path], str]) -> Iterator[Finding]:
    """Of what each step put last, Runnable's hash (of files below 1 GiB: their SHA-256) against the file."""
    put: dict[str, str] = {}
    order = sorted(steps.items(), key=lambda item: _began(item[1]))
    for _, step in order:
        if step.get("status") != "SUCCESS":
            return  # what was put by a step that failed may have been half of it
        for entry in objects(step.get("data_catalog")):
            name, digest = entry.get("name"), entry.get("data_hash")
            if entry.get("stage") == "put" and isinstance(name, str) and isinstance(digest, str):
                put[name] = digest
    for name, digest in put.items():
        parts = name.split("/")
        path = record.run.path / name
        if name.startswith("/") or ".." in parts:
            yield Finding("run_log.json", f"names {brief(name)}, which is no file of the run")
        elif parts[0] == "checkpoints" and not path.exists():
            continue  # pruned by a later attempt
        else:
            try:
                found = digest_of(path) if path.stat().st_size < 1 << 30 else digest
            except OSError:
                yield Finding(name, "is missing or no plain file, and run_log.json tells of it")
                continue
            if found != digest:
                yield differs(name, "by its digest", found, "run_log.json", digest)


def _began(step: dict[str, Any]) -> str:
    attempts = objects(step.get("attempts"))
    return str(attempts[-1].get("start_time")) if attempts else ""
