"""The runs of a catalog, a row each, from whatever their folders hold.

A row has two parts: facts, which are what the files say and stay the same while the files do, so that they
can be cached (index.py); and what depends on the moment: whether an open run is still going on, and ages.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lockstep import linux
from lockstep.catalog import events, index, run_parameters, status
from lockstep.catalog.index import Index
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.values import at, moment, number, whole
from lockstep.catalog.run import Run, run_ids
from lockstep.files import read_object

LONGEST_TEXT = 1000


class Facts(NamedTuple):
    """What a run's history and results say of it; ``process_*`` are those of its last attempt."""

    created: str | None
    tag: str | None
    strategy: str | None
    world_size: int | None
    dataset: str | None
    model: str | None
    parent: str | None
    parent_kind: str | None
    accuracy: float | None
    loss: float | None
    samples_per_second: float | None
    seconds: float | None
    word: str
    cause: str | None
    message: str | None
    rank: int | None
    attempt: int
    started: str | None
    finished: str | None
    pid: int | None
    process_host: str | None
    process_boot: str | None
    process_ticks: int | None


_REAL = (int, float, type(None))
_TEXT = (str, type(None))
_COUNT = (int, type(None))
_ALLOWED = {
    "created": _TEXT, "tag": _TEXT, "strategy": _TEXT, "world_size": _COUNT, "dataset": _TEXT,
    "model": _TEXT, "parent": _TEXT, "parent_kind": _TEXT, "accuracy": _REAL, "loss": _REAL,
    "samples_per_second": _REAL, "seconds": _REAL, "word": (str,), "cause": _TEXT, "message": _TEXT,
    "rank": _COUNT, "attempt": (int,), "started": _TEXT, "finished": _TEXT, "pid": _COUNT,
    "process_host": _TEXT, "process_boot": _TEXT, "process_ticks": _COUNT,
}  # fmt: skip
_seen_good: set[tuple[type, ...]] = set()


def rows(catalog: Path) -> list[dict[str, Any]]:
    """A row for every run, newest first. Damaged records leave gaps (None), and never an error."""
    now = time.time()
    catalog = catalog.resolve()
    cache = Index(catalog, "runs", now, _good)
    found = []
    for run_id in run_ids(catalog):
        run = Run(catalog / run_id)
        found.append(_row(run, partial(_cached, cache, run), now))
    cache.close()
    found.sort(key=lambda row: (row["created"] or "", row["run_id"]), reverse=True)
    return found


def note(run: Run) -> None:
    """Leave what lists read of a run that has just ended where they look first: its facts, and its parameters."""
    index.note(run.catalog, "runs", run.run_id, files_of(run), list(facts_of(run)))
    run_parameters.note(run)


def files_of(run: Run) -> tuple[str, ...]:
    """The files that facts are read from."""
    folder = str(run.path)
    return f"{folder}/events.jsonl", f"{folder}/distributed_training_results.json"


def row(run: Run, now: float) -> dict[str, Any]:
    """What a list says of one run. Accuracy and loss are the final model's on the test split."""
    return _row(run, partial(facts_of, run), now)


def facts_of(run: Run) -> Facts:
    """Read one run's history and results."""
    history = events.read(run)
    state, process = status.recorded(history)
    created: dict[str, Any] = next((event for event in history if event["event"] == "created"), {})
    results = read_object(run.results)
    test = at(results, "evaluation", "final", "test")
    return Facts(
        created=_text(created.get("time")) or (_text(history[0].get("time")) if history else None),
        tag=_text(created.get("tag")),
        strategy=_text(at(created, "summary", "strategy")),
        world_size=whole(at(created, "summary", "world_size")),
        dataset=_text(at(created, "summary", "dataset")),
        model=_text(at(created, "summary", "model")),
        parent=_text(at(created, "parent", "run_id")),
        parent_kind=_text(at(created, "parent", "kind")),
        accuracy=number(at(test, "accuracy")),
        loss=number(at(test, "loss")),
        samples_per_second=number(at(results, "training", "samples_per_second")),
        seconds=told_by(history).seconds,
        word=state.word,
        cause=_text(state.cause),
        message=_text(state.message),
        rank=whole(state.rank),
        attempt=whole(state.attempt) or 0,
        started=_text(state.started),
        finished=_text(state.finished),
        pid=whole(state.pid),
        process_host=_text(process.get("host")),
        process_boot=_text(process.get("boot_id")),
        process_ticks=whole(process.get("start_ticks")),
    )


def duration(seconds: float | None, state: status.Status, now: float) -> float | None:
    """Time spent in all attempts; while the run is going on, up to now."""
    started = moment(state.started)
    return max(seconds or 0.0, now - started) if state.word == "running" and started else seconds


def _cached(cache: Index, run: Run) -> Facts:
    return Facts(*cache.get(run.run_id, files_of(run), lambda: list(facts_of(run))))


def _row(run: Run, read: Callable[[], Facts], now: float) -> dict[str, Any]:
    facts = read()
    word, cause, seconds = facts.word, facts.cause, facts.seconds
    if word not in status.ENDINGS:
        running = linux.is_locked(run.lock)
        if not running:
            facts = read()  # it may have ended between the two questions; unchanged files are not read again
        state = _state_of(facts, running)
        word, cause, seconds = state.word, state.cause, duration(facts.seconds, state, now)
    born = moment(facts.created)
    return {
        "run_id": run.run_id,
        "path": str(run.path),
        "status": word,
        "cause": cause,
        "tag": facts.tag,
        "strategy": facts.strategy,
        "world_size": facts.world_size,
        "dataset": facts.dataset,
        "model": facts.model,
        "accuracy": facts.accuracy,
        "loss": facts.loss,
        "samples_per_second": facts.samples_per_second,
        "seconds": seconds,
        "created": facts.created,
        "age_seconds": None if born is None else max(0.0, now - born),
        "parent": facts.parent,
        "parent_kind": facts.parent_kind,
    }


def _state_of(facts: Facts, running: bool) -> status.Status:
    """The status that the facts and the lock tell of."""
    told = status.Status(facts.word, facts.cause, attempt=facts.attempt, started=facts.started, pid=facts.pid)
    if facts.word in status.ENDINGS:
        return told
    process: dict[str, Any] = {}
    if facts.attempt:
        host, boot, ticks = facts.process_host, facts.process_boot, facts.process_ticks
        process = {"host": host, "boot_id": boot, "start_ticks": ticks}
    return status.running(told) if running else status.without_ending(told, process)


def _good(value: Any) -> bool:
    """Whether a cached value has the form of facts."""
    if type(value) is not list or len(value) != len(_ALLOWED):
        return False
    types = tuple(map(type, value))
    if types in _seen_good:
        return True
    good = all(kind in allowed for kind, allowed in zip(types, _ALLOWED.values(), strict=True))
    if good:
        _seen_good.add(types)
    return good


def _text(value: object) -> str | None:
    return value[:LONGEST_TEXT] if isinstance(value, str) else None
