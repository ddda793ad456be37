"""How a run stands now, and what its ranks have measured since a step: all that its live page asks for."""

import time
from pathlib import Path
from typing import Any

from lockstep.catalog import culprit, events, listing, status, tail
from lockstep.catalog.report import data
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.steps import MOST_BUCKETS, Steps, read
from lockstep.catalog.report.values import whole
from lockstep.catalog.run import Run
from lockstep.files import read_object

LOG_LINES = 12


def state(run: Run, after: int, attempt: int) -> dict[str, Any]:
    """JSON values: the run's row, its plan, and figures of the steps after one that all ranks have written.

    ``attempt`` is the one that the page knows; where another has begun since, or where steps that were shown
    are to be taken again, everything is sent anew, and ``anew`` is true.
    """
    now = status.of(run)  # asked before the steps are read: what came before the end is among them
    steps = read(run, after, MOST_BUCKETS, whole_only=True)
    anew = after == 0 or steps.attempts != attempt
    if anew and after:
        steps = read(run, 0, MOST_BUCKETS, whole_only=True)
    row = listing.row(run, time.time())
    return {
        "run": {
            name: row.get(name) for name in ("run_id", "tag", "strategy", "world_size", "dataset", "model")
        },
        "status": now.word,
        "cause": now.cause,
        "message": now.message,
        "rank": now.rank,
        "seconds": row.get("seconds"),
        "steps": whole(read_object(run.plan).get("steps")),
        "attempt": steps.attempts,
        "anew": anew,
        "figures": data.figures([_record(run, steps)], [run.run_id]),
        "samples_per_second": row.get("samples_per_second"),
        "log": _log(run, now),
    }


def _log(run: Run, now: status.Status) -> dict[str, Any]:
    """The end of a log, and whose it is: of a run that failed, the one that tells why; else rank 0's."""
    attempts = told_by(events.read(run)).attempts if now.word in ("failed", "killed") else []
    told = culprit.log(run, now, attempts[-1].steps if attempts else [])
    if told is None:
        return {"name": run.rank_log(0).name, "lines": tail.last_lines(run.rank_log(0), LOG_LINES)}
    return {"name": Path(told["path"]).name, "lines": told["lines"]}


def _record(run: Run, steps: Steps) -> Record:
    """The steps alone, in the shape that the charts are made from."""
    return Record(run, {}, {}, {}, [], "", (), None, steps)
