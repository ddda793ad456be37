"""Whose log tells why a run failed: the failing rank's, a server's, or the failing step's."""

import re
from pathlib import Path
from typing import Any

from lockstep.catalog import status, tail
from lockstep.catalog.report.history import Step
from lockstep.catalog.run import Run

TAIL_LINES = 20
_SERVER = re.compile(r"\bserver (\d{1,6})\b")


def log(run: Run, state: status.Status, steps: list[Step]) -> dict[str, Any] | None:
    """The end of the log that says most of why a run failed or was killed: ``path`` and ``lines``; or None.

    ``steps`` are those of the last attempt. A log without a line is passed over for the next best.
    """
    if state.word not in ("failed", "killed"):
        return None
    for path in _candidates(run, state, steps):
        lines = tail.last_lines(path, TAIL_LINES)
        if any(line.strip() for line in lines):
            return {"path": str(path), "lines": lines}
    return None


def _candidates(run: Run, state: status.Status, steps: list[Step]) -> list[Path]:
    found = []
    if state.rank is not None and 0 <= state.rank < 10**6:
        found.append(run.rank_log(state.rank))
    if server := _SERVER.search(state.message or ""):
        found.append(run.logs / f"server-{server.group(1)}.log")
    unfinished = [step.name for step in steps if step.status in ("failed", "open")]
    if state.word == "killed" and unfinished[-1:] == ["train"]:
        found += _newest_first(run)  # nobody was left to say whose fault it was
    if unfinished and "/" not in unfinished[-1]:
        found.append(run.logs / f"{unfinished[-1]}.log")
    return found


def _newest_first(run: Run) -> list[Path]:
    """The ranks' logs, the last written first."""
    try:
        logs = [path for path in run.logs.iterdir() if re.fullmatch(r"rank-\d{1,6}\.log", path.name)]
        return sorted(logs, key=lambda path: path.lstat().st_mtime_ns, reverse=True)
    except OSError:
        return []
