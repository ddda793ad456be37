"""Everything about one run that fits a screen, gathered from its folder as JSON values.

What is missing or damaged in the folder leaves gaps and never an error.
"""

import time
from pathlib import Path
from typing import Any

from lockstep.catalog import culprit, events, lineage, status, tail
from lockstep.catalog.listing import row
from lockstep.catalog.report.files_of import best_checkpoint
from lockstep.catalog.report.history import Attempt, Step, told_by
from lockstep.catalog.report.values import at, counted, mapping, objects
from lockstep.catalog.run import Run
from lockstep.catalog.text import cell
from lockstep.errors import UsageError
from lockstep.files import LARGEST_OBJECT_BYTES, parse_json, read_object, read_plain

MOST_RANKS = 64
CODE = (
    *("commit", "branch", "dirty", "patch", "absent", "remote"),
    *("patch_absent", "untracked_absent", "left_out", "left_out_count"),
)
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
    ranks = objects(results.get("ranks"))
    return {
        **row(run, now),
        "attempt": state.attempt,
        "message": state.message,
        "rank": state.rank,
        "pid": state.pid,
        "finished": state.finished,
        "parent": created.get("parent"),
        "attempts": [_attempt(each) for each in told.attempts],
        "code": {key: code.get(key) for key in CODE},
        "data": _data(read_object(run.data / "data.json", depth=2)),
        "machine": mapping(provenance.get("machine")),
        "packages": mapping(provenance.get("packages")),
        "uv_lock": mapping(provenance.get("uv_lock")),
        "argv": provenance.get("argv"),
        "sealed": _sealed(history),
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
        "ranks": ranks,
        "ranks_last": [] if ranks else ranks_last(run),
        "lineage": lineage.of(run),
        "files": _files(run, results),
        "gaps": gaps(run),
        "log": culprit.log(run, state, told.attempts[-1].steps if told.attempts else []),
    }


def _files(run: Run, results: dict[str, Any]) -> dict[str, str]:
    found = {name: str(run.path / file) for name, file in FILES.items() if _there(run.path / file)}
    best = best_checkpoint(run, results)
    return found | ({"best checkpoint": str(best)} if best else {})


def ranks_last(run: Run) -> list[dict[str, Any]]:
    """How far each rank has come, by the end of its metrics: of a run without results, or still running."""
    known = min(tail.ranks_known(run, read_object(run.plan)) or 0, MOST_RANKS)
    found = []
    for rank in range(known):
        lines = tail.latest(tail.metrics_file(run, rank))
        found.append({"rank": rank, **{kind: lines.get(kind) for kind in ("start", "step", "epoch", "end")}})
    return found


def gaps(run: Run) -> list[str]:
    """A sentence for each file of the record that stands there and cannot be used. What is missing is no gap."""
    found = []
    for path, depth in ((run.results, 1), (run.provenance, 1), (run.plan, 1), (run.data / "data.json", 2)):
        name = path.relative_to(run.path)
        try:
            value = parse_json(read_plain(path, LARGEST_OBJECT_BYTES, depth))
        except FileNotFoundError:
            continue
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
        except ValueError:
            found.append(f"{name} is torn or no JSON")
        else:
            if not isinstance(value, dict):
                found.append(f"{name} holds no JSON object")
    torn = events.torn_lines(run)
    if torn:
        found.append(f"events.jsonl has {counted(torn, 'line')} that {'is' if torn == 1 else 'are'} no event")
    return found


def rank_view(run: Run, rank: int, count: int) -> dict[str, Any]:
    """A rank's last step and epoch and the end of its log. Raises UsageError where there is none."""
    known = tail.ranks_known(run, read_object(run.plan))
    if known is not None and rank >= known:
        raise UsageError(f"run {run.shown} has no rank {rank}: its ranks are 0 to {known - 1}")
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
        rank = f"; a rank is asked for with `rank {step}`" if step.isascii() and step.isdecimal() else ""
        raise UsageError(f"run {run.shown} has no step {step!r}: its steps are {known}{rank}")
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


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        "seconds": attempt.seconds,
        "started": attempt.started,
        "last": attempt.last,
    }


def _data(told: dict[str, Any]) -> dict[str, Any]:
    """The data's identity and the samples of each split."""
    splits = {name: at(file, "samples") for name, file in mapping(told.get("files")).items()}
    if not told:
        return {}
    return {"identity": told.get("identity"), "samples": splits, "made_from": mapping(told.get("made_from"))}


def _sealed(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The seal of the last attempt; None while it has none."""
    names = [event["event"] for event in history]
    if "sealed" not in names or "started" in names[last_index(names, "sealed") :]:
        return None
    event = history[last_index(names, "sealed")]
    return {"time": event.get("time"), "manifest_sha256": event.get("manifest_sha256")}


def last_index(names: list[str], name: str) -> int:
    """Where a name stands last."""
    return len(names) - 1 - names[::-1].index(name)


def _there(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True
