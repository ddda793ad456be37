"""Watching a group of ranks: their deaths, their standstill, the user's wish to stop; and naming the culprit."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.errors import RunFailed
from lockstep.files import printable, read_json
from lockstep.launchers.client import Server
from lockstep.linux import process_state
from lockstep.running_time import RunningTime

POLL_SECONDS = 0.1
START_SECONDS = (
    300.0  # a rank that imports torch by itself on a busy machine needs long before its first step
)
LEAVE_SECONDS = 10.0  # for leaving the process group; everything is written by then
TAIL_LINES = 20
LEAST_FREE_BYTES = 1 << 17  # below it a rank cannot even leave a word
STACK_BEGINS = ("Fatal Python error", "Current thread 0x", "Thread 0x")


@dataclass
class Watched:
    """A group under supervision."""

    run: Run
    server: Server
    logs: list[Path]
    board: Board | None
    timeout_seconds: float
    pids: list[int] = field(default_factory=list)
    exits: dict[int, tuple[int, float]] = field(default_factory=dict)  # index: (code, when)
    log_offsets: list[int] = field(default_factory=list)
    beats: dict[int, int] = field(
        default_factory=dict
    )  # of the processes that had not ended at the last look
    silence: RunningTime = field(default_factory=RunningTime)  # since any of them last gave a sign of life

    def __post_init__(self) -> None:
        self.log_offsets = [log.stat().st_size if log.exists() else 0 for log in self.logs]


def supervise(
    watched: Watched,
    stop_wanted: Callable[[], bool] = lambda: False,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Return when every process has ended well; RunFailed, with the rest ended, when one has not."""
    server = watched.server
    out_of_memory_kills = _out_of_memory_kills()
    while True:
        for message in server.poll(POLL_SECONDS):
            if message["event"] == "started":
                watched.pids = message["pids"]
            elif message["event"] == "exit":
                watched.exits[message["index"]] = (message["code"], message["time"])
        if any(_has_failed(watched, index) for index in watched.exits):
            end_group(watched)
            raise failure(watched, _out_of_memory_kills() > out_of_memory_kills)
        if len(watched.exits) == len(watched.logs):
            return
        if watched.board is not None:
            if stop_wanted():
                watched.board.set_header("stop_requested", 1)
            if watched.pids:
                check_lives(watched, watched.board)
        tick()


def _has_failed(watched: Watched, index: int) -> bool:
    """Whether a process that has ended did so before its work was done, whatever status it ended with.

    What it had to write is written once it says that it is done; how it ends after that changes nothing.
    """
    if watched.board is None:
        return watched.exits[index][0] != 0
    return watched.board.phase(index) != "done"


def end_group(watched: Watched, patience: float = 0.3) -> None:
    """Give the others a moment to leave their own words, then end them; all have ended when it returns."""
    deadline = time.monotonic() + patience
    while len(watched.exits) < len(watched.logs):
        if time.monotonic() > deadline:
            watched.server.kill_group()
            deadline = float("inf")
        for message in watched.server.poll(POLL_SECONDS):
            if message["event"] == "exit":
                # Deaths by our own hand come last and say nothing.
                watched.exits[message["index"]] = (message["code"], message["time"])


def failure(watched: Watched, out_of_memory: bool) -> RunFailed:
    """What went wrong, told by the rank where it began.

    One rank's failure makes its peers fail: they see a closed connection. So a rank that raised something
    of its own comes first, then one that a signal killed, then whoever failed first.
    """
    words = _words(watched.run)
    own = [word for word in words if not _is_echo(word)]
    if own:
        return _raised(watched, min(own, key=lambda word: word["time"]))
    spoke = {word["rank"] for word in words}
    ended = [index for index in watched.exits if index not in spoke and _has_failed(watched, index)]
    silent = {index: watched.exits[index][1] for index in ended}
    if words and not silent:
        return _raised(watched, min(words, key=lambda word: word["time"]))
    index = min(silent, key=lambda i: silent[i])
    code = watched.exits[index][0]
    if code < 0:
        return _killed(watched, index, -code, out_of_memory)
    text = f"{_name(watched, index)} ended with exit status {code}{_at(watched, index)}, without an exception"
    free = shutil.disk_usage(watched.run.path).free
    if free < LEAST_FREE_BYTES:
        text += (
            f". The disk of {watched.run.path} is full ({free:,} bytes free): make room and continue the run"
        )
        return _described(watched, index, text, "disk full")
    return _described(watched, index, text, "exception")


def _words(run: Run) -> list[dict[str, Any]]:
    words = []
    for path in run.live.glob("error-*.json"):
        with contextlib.suppress(OSError, ValueError):
            words.append(read_json(path))
    return words


def _is_echo(word: dict[str, Any]) -> bool:
    """Whether an error only says that somebody else is gone."""
    text = word["traceback"]
    if word.get("echo"):
        return True
    return not word["expected"] and ("gloo" in text or "Connection" in text or "torch.distributed" in text)


def _raised(watched: Watched, word: dict[str, Any]) -> RunFailed:
    index, cause = word["rank"], word["cause"]
    if word["expected"]:
        return _tagged(watched, RunFailed(word["message"], cause), index)
    where = f"{_name(watched, index)} raised {word['message']}{_at(watched, index)}"
    text = f"{where}\n\n{printable(word['traceback']).rstrip()}\n\nIts log: {watched.logs[index]}"
    return _tagged(watched, RunFailed(text, cause), index)


def _killed(watched: Watched, index: int, number: int, out_of_memory: bool) -> RunFailed:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    text = f"{_name(watched, index)} was killed by {name}{_at(watched, index)}"
    if number == signal.SIGKILL and out_of_memory:
        text += ": the kernel ended it because memory ran out. Use a smaller batch or model, or fewer ranks"
        return _described(watched, index, text, "out of memory")
    return _described(watched, index, text, "signal")


def _described(watched: Watched, index: int, text: str, cause: str) -> RunFailed:
    log = watched.logs[index]
    tail = ""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(watched.log_offsets[index], log.stat().st_size - 16384))
        lines = printable(file.read().decode(errors="replace")).splitlines()
        # A stack that faulthandler wrote (a crash, or our question where it hangs) begins with what matters.
        crash = next((i for i, line in enumerate(lines) if line.startswith(STACK_BEGINS)), None)
        tail = "\n".join(lines[-TAIL_LINES:] if crash is None else lines[max(crash - 3, 0) :][:TAIL_LINES])
    said = f"\nThe end of its log:\n{tail}" if tail.strip() else "\nIts log is empty."
    return _tagged(watched, RunFailed(f"{text}{said}\nIts log: {log}", cause), index)


def _tagged(watched: Watched, error: RunFailed, index: int) -> RunFailed:
    server = _server(watched, index)
    error.rank, error.server = (index, None) if server is None else (None, server)
    return error


def _server(watched: Watched, index: int) -> int | None:
    """The number of a server process; they come after the ranks."""
    ranks = watched.board.world_size if watched.board is not None else index + 1
    return index - ranks if index >= ranks else None


def _name(watched: Watched, index: int) -> str:
    if watched.board is None:
        return watched.logs[index].stem
    server = _server(watched, index)
    return f"rank {index}" if server is None else f"server {server}"


def _at(watched: Watched, index: int) -> str:
    """Where the rank was, as it last said."""
    board = watched.board
    if board is None:
        return ""
    return f" after step {board.integer(index, 'step')} ({board.phase(index)})"


def check_lives(watched: Watched, board: Board) -> None:
    """RunFailed when no rank has moved for the timeout: the ones that are behind are named."""
    still = [rank for rank in range(board.processes) if rank not in watched.exits]
    if not still:
        return
    beats = {rank: board.integer(rank, "beats") for rank in still}
    if beats != watched.beats:
        watched.beats = beats
        watched.silence.restart()
    phases = {rank: board.phase(rank) for rank in still}
    all_done = set(phases.values()) == {"done"}
    limit = START_SECONDS if "starting" in phases.values() else watched.timeout_seconds
    if watched.silence.seconds() < (LEAVE_SECONDS if all_done else limit):
        return
    if all_done:  # gloo can hang on leaving; there is nothing left to lose
        watched.server.kill_group()
        return
    raise_hang(watched, board, phases, limit)


def raise_hang(watched: Watched, board: Board, phases: dict[int, str], limit: float) -> None:
    """Ask the ranks where they stand, end them, and name whom the others wait for."""
    for pid in watched.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    progress = {rank: (board.integer(rank, "step"), board.integer(rank, "beats")) for rank in phases}
    # A server only answers: unless it is stopped, it waits for a rank.
    ranks = [rank for rank in phases if _server(watched, rank) is None] or list(phases)
    behind = [rank for rank in ranks if progress[rank] == min(progress[other] for other in ranks)]
    culprit = next((rank for rank in behind if phases[rank] != "compute"), behind[0])
    stopped = [rank for rank in phases if process_state(watched.pids[rank]) in ("T", "t")]
    if stopped:
        culprit = stopped[0]
    steps = ", ".join(
        f"{_name(watched, rank)}: step {progress[rank][0] + 1}, {phase}"
        + (" (stopped by a signal)" if rank in stopped else "")
        for rank, phase in phases.items()
    )
    end_group(watched, 0.0)
    raise _described(
        watched,
        culprit,
        f"no rank has moved for {limit:g} s (distributed.timeout_seconds), and {_name(watched, culprit)} is the one "
        f"the others wait for; {steps}. In the phase compute a rank takes part in the gradients' all-reduce",
        "hang",
    )


def _out_of_memory_kills() -> int:
    """How often the kernel has ended a process of this control group for memory."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text(encoding="utf-8").split("\n")
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0
