"""Everything about one run that fits a screen, gathered from its folder as JSON values.

What is missing or damaged in the folder leaves gaps and never an error.
"""

import time
from typing import Any

from lockstep.catalog import events, status, tail
from lockstep.catalog.listing import row
from lockstep.catalog.report.history import Step, told_by
from lockstep.catalog.report.values import at, mapping, objects
from lockstep.catalog.run import Run
from lockstep.catalog.text import cell
from lockstep.errors import UsageError
from lockstep.files import read_object

TAIL_LINES = 20
FILES = {
    "report": "report.html",
    "results": "distributed_training_results.json",
    "model": "distributed_model_checkpoint.pt",
    "parameters": "parameters.yaml",
    "checkpoints": "checkpoints",
    "metrics": "metrics",
    "logs": "logs",
}


def overview(run: Run) -> dict[str, Any]:
    """What is known of a run, as one JSON value."""
    now = time.time()
    history, state = events.read(run), status.of(run)
    told, results, provenance = told_by(history), read_object(run.results), read_object(run.provenance)
    created: dict[str, Any] = next((event for event in history if event["event"] == "created"), {})
    code = mapping(provenance.get("git"))
    return {
        **row(run, now),
        "attempt": state.attempt,
        "message": state.message,
        "rank": state.rank,
        "pid": state.pid,
        "finished": state.finished,
        "parent": created.get("parent"),
        "attempts": [{"attempt": each.number, "seconds": each.seconds} for each in told.attempts],
        "code": {key: code.get(key) for key in ("commit", "branch", "dirty", "patch", "absent")},
        "machine": mapping(provenance.get("machine")),
        "packages": mapping(provenance.get("packages")),
        "argv": provenance.get("argv"),
        "steps": [
            {"attempt": each.number, **_step(step, state.word, each is told.attempts[-1])}
            for each in told.attempts
            for step in each.steps
        ],
        "warnings": told.warnings,
        "training": mapping(results.get("training")),
        "evaluation": {
            which: mapping(at(results, "evaluation", which))
            for which in ("final", "best")
            if at(results, "evaluation", which)
        },
        "ranks": objects(results.get("ranks")),
        "files": {name: str(run.path / file) for name, file in FILES.items() if (run.path / file).exists()},
        "log": _telling_log(run, state, told.attempts[-1].steps if told.attempts else []),
    }


def rank_view(run: Run, rank: int, count: int) -> dict[str, Any]:
    """A rank's last step and epoch and the end of its log. Raises UsageError where there is none."""
    known = tail.ranks_known(run, read_object(run.plan))
    if known is not None and rank >= known:
        raise UsageError(f"run {run.run_id} has no rank {rank}: its ranks are 0 to {known - 1}")
    lines = tail.latest(tail.metrics_file(run, rank))
    return {
        "run_id": run.run_id,
        "status": status.of(run).word,
        "rank": rank,
        "step": lines.get("step"),
        "epoch": lines.get("epoch"),
        "end": lines.get("end"),
        "log_path": str(run.rank_log(rank)),
        "log": tail.last_lines(run.rank_log(rank), count),
    }


def step_view(run: Run, step: str, count: int) -> dict[str, Any]:
    """A pipeline step's times and the end of its log. Raises UsageError where the run has no such step."""
    attempts = told_by(events.read(run)).attempts
    word = status.of(run).word
    times = [
        {"attempt": attempt.number, **_step(each, word, attempt is attempts[-1])}
        for attempt in attempts
        for each in attempt.steps
        if each.name == step
    ]
    log = run.logs / f"{step}.log"
    if not times and ("/" in step or not log.is_file()):
        names = list(dict.fromkeys(each.name for attempt in attempts for each in attempt.steps))
        known = ", ".join(cell(name) for name in names) if names else "none yet"
        raise UsageError(f"run {run.run_id} has no step {step!r}: its steps are {known}")
    lines = [] if "/" in step else tail.last_lines(log, count)
    return {"run_id": run.run_id, "step": step, "times": times, "log_path": str(log), "log": lines}


def _step(step: Step, word: str, of_last_attempt: bool) -> dict[str, Any]:
    """A step of the pipeline; one without an end runs with its run, or ended as it did."""
    open_now = step.status == "open"
    now = word if of_last_attempt else "killed"
    return {
        "step": step.name,
        "status": now if open_now else step.status,
        "started": step.started,
        "seconds": step.seconds,
    }


def _telling_log(run: Run, state: status.Status, steps: list[Step]) -> dict[str, Any] | None:
    """Of a run that failed: the end of the failing rank's log, or of the failing step's."""
    if state.word not in ("failed", "killed"):
        return None
    if state.rank is not None and state.rank >= 0:
        path = run.rank_log(state.rank)
    else:
        unfinished = [step.name for step in steps if step.status in ("failed", "open")]
        if not unfinished or "/" in unfinished[-1]:
            return None
        path = run.logs / f"{unfinished[-1]}.log"
    lines = tail.last_lines(path, TAIL_LINES)
    return {"path": str(path), "lines": lines} if lines else None
