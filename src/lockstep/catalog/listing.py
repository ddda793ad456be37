"""The runs of a catalog, a row each, from whatever their folders hold.

A row has two parts: facts (facts.py), which are what the files say and stay the same while the files do, so that
they can be cached (index.py); and what depends on the moment: whether an open run is still going on, and ages.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lockstep import linux
from lockstep.catalog import index, run_parameters, status
from lockstep.catalog.access import unreadable
from lockstep.catalog.facts import Facts, are_facts, facts_of, files_of
from lockstep.catalog.index import Index
from lockstep.catalog.report.values import moment
from lockstep.catalog.run import Run, run_ids


def rows(catalog: Path) -> list[dict[str, Any]]:
    """A row for every run, newest first. Damaged records leave gaps (None), and never an error."""
    now = time.time()
    catalog = catalog.resolve()
    cache = Index(catalog, "runs", now, are_facts)
    runs = [Run(catalog / run_id) for run_id in run_ids(catalog)]
    cache.read_ahead(
        {run.run_id: files_of(run) for run in runs}, lambda run_id: list(facts_of(Run(catalog / run_id)))
    )
    found = [_row(run, partial(_cached, cache, run), now) for run in runs]
    cache.close()
    found.sort(key=lambda row: (row["created"] or "", row["run_id"]), reverse=True)
    return found


def note(run: Run) -> None:
    """Leave what lists read of a run that has just ended where they look first: its facts, and its parameters."""
    index.note(run.catalog, "runs", run.run_id, files_of(run), list(facts_of(run)))
    run_parameters.note(run)


def row(run: Run, now: float) -> dict[str, Any]:
    """What a list says of one run. Accuracy and loss are the final model's on the validation split."""
    return _row(run, partial(facts_of, run), now)


def duration(seconds: float | None, state: status.Status, now: float) -> float | None:
    """Time spent in all attempts; while the run is going on, up to now."""
    started = moment(state.started)
    return max(seconds or 0.0, now - started) if state.word == "running" and started else seconds


def _cached(cache: Index, run: Run) -> Facts:
    return Facts(*cache.get(run.run_id, files_of(run), lambda: list(facts_of(run))))


def _row(run: Run, read: Callable[[], Facts], now: float) -> dict[str, Any]:
    facts = read()
    word, cause, seconds = facts.word, facts.cause, facts.seconds
    if word not in status.ENDINGS and not facts.attempt and unreadable(run):
        word, cause = "unknown", "not readable"
    elif word not in status.ENDINGS:
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
        "test_accuracy": facts.test_accuracy,
        "test_loss": facts.test_loss,
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
