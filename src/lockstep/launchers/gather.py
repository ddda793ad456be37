"""A group of processes outside any run: started, waited for, and what each of them saw collected. No torch."""

import contextlib
import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from lockstep.errors import LockstepError, RunFailed
from lockstep.launchers.client import Server, ended_on_exit
from lockstep.signals import STOPPING

_SECOND_WORD = 0.2  # the process where it began may still be writing when another's end is noticed


def gather(
    target: str, order: dict[str, Any], count: int, limit_seconds: float, server: Server | None = None
) -> list[Any]:
    """Run ``target(index, folder, order, parent_pid)`` in ``count`` processes; the JSON that each left.

    A process leaves ``rank-N.json`` in the folder and ends with 0, or words in ``error-N`` and ends with
    another status. Raises RunFailed with the first words. No process is left when it returns, unless it was
    given a ``server`` that is prepared already: then those may still be on their way out.
    """
    with contextlib.ExitStack() as stack:
        # A signal that came between the two, making the folder and taking it on, would leave it behind.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockstep-")))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if server is None:
            server = stack.enter_context(ended_on_exit(Server()))
            server.prepare("forkserver", Path.cwd())
        server.start(target, [str(folder), order], count)
        try:
            _wait(server, folder, limit_seconds)
        except BaseException:
            server.kill_group()
            raise
        return [
            json.loads((folder / f"rank-{index}.json").read_text(encoding="utf-8")) for index in range(count)
        ]


def _wait(server: Server, folder: Path, limit_seconds: float) -> None:
    deadline, started = time.monotonic() + limit_seconds, False
    while time.monotonic() < deadline:
        for message in server.poll(0.5):
            started |= message["event"] == "started"  # what comes before is about an earlier group
            if message["event"] == "all_ended" and started:
                return
            if message["event"] == "exit" and message["code"] and started:
                raise _failure(folder, message["index"], message["code"])
    raise LockstepError(f"the processes have not ended within {limit_seconds:g} s")


def _failure(folder: Path, index: int, code: int) -> RunFailed:
    time.sleep(_SECOND_WORD)
    for word in sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime):
        return RunFailed(word.read_text(encoding="utf-8"), rank=index)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
    return RunFailed(f"process {index} {how}", "signal" if code < 0 else "exception", index)
