"""Reading many records at once: in as many processes as there are cores, where that is quicker than in one."""

import contextlib
import itertools
import marshal
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lockstep.linux import cores, die_with_parent

WORTH_A_PROCESS = 500  # items; for fewer, starting one costs more than it saves
MOST_PROCESSES = 8

T = TypeVar("T")


def each(work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """``work`` of every item, in order. What it returns consists of numbers, text, lists, tuples, dicts and None.

    The other processes are forks of this one, which must have one thread only: a lock that another held would stay
    held in them. What a fork does not bring home is worked out here.
    """
    count = min(cores(), MOST_PROCESSES, len(items) // WORTH_A_PROCESS)
    if count < 2 or not _alone():
        return [work(item) for item in items]
    bounds = [len(items) * number // count for number in range(count + 1)]
    own, *shares = [items[start:stop] for start, stop in itertools.pairwise(bounds)]
    forks = [_fork(work, share) for share in shares]
    try:
        found = [work(item) for item in own]
        for number, share in enumerate(shares):
            fork = forks[number]
            brought = _brought(*fork) if fork else None
            forks[number] = None
            found += brought if brought is not None else [work(item) for item in share]
    finally:
        for pid, reading in filter(None, forks):  # a Ctrl-C, an error: nobody needs them any more
            with contextlib.suppress(OSError):  # it was being waited for
                os.close(reading)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    return found


def _alone() -> bool:
    return threading.active_count() == 1


def _fork(work: Callable[[T], Any], share: Sequence[T]) -> tuple[int, int] | None:
    """A process that works on a share; its pid, and where to read what it found. None where there can be no more."""
    try:
        reading, writing = os.pipe()
    except OSError:
        return None
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return None
    if pid:
        os.close(writing)
        return pid, reading
    try:
        die_with_parent(parent)
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(marshal.dumps([work(item) for item in share]))
    finally:
        os._exit(0)  # whatever happened: its parent sees what came


def _brought(pid: int, reading: int) -> list[Any] | None:
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    with contextlib.suppress(ChildProcessError):  # reaped already, where the kernel was told to
        os.waitpid(pid, 0)
    try:
        found = marshal.loads(content)  # written by our own fork, a moment ago
    except (EOFError, ValueError, TypeError):
        return None
    return found if isinstance(found, list) else None
