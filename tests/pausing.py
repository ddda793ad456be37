"""Stopping every process of a command and continuing them, as a suspended machine or a frozen container does."""

import contextlib
import os
import random
import signal
import time

from conftest import descendants


def pause(pid: int, seconds: float, seed: int, apart: float = 0.5) -> None:
    """Stop them all, wait, and continue them one by one in a random order, ``apart`` seconds from first to last."""
    stopped: list[int] = []
    while new := [each for each in (pid, *descendants(pid)) if each not in stopped]:  # some may start others
        for each in new:
            _send(each, signal.SIGSTOP)
        stopped += new
    time.sleep(seconds)
    random.Random(seed).shuffle(stopped)
    for each in stopped:
        _send(each, signal.SIGCONT)
        time.sleep(apart / len(stopped))


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
