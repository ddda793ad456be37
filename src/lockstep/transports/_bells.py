"""Sleeping until another process rings: a futex for each rank in the shared memory.

The order that keeps a wake-up from being lost: whoever sleeps reads its bell, says that it sleeps, then looks whether
what it waits for has happened, and gives the kernel the value of the bell that it read. Whoever has written something
then looks whether the other side sleeps, changes its bell and wakes it. Of two processes that each write one word and
then read the other's, at least one sees what the other wrote, if a full barrier lies between the two; x86-64 has
one in every locked instruction, so taking a Python lock is such a barrier.
"""

import ctypes
import errno
import itertools
import time
from collections.abc import Callable
from threading import Lock

from lockstep.transports._segment import Segment

_SYS_FUTEX, _WAIT, _WAKE = 202, 0, 1  # of x86-64, the only processor that this memory is for
_ALL = 2**31 - 1
_FALLBACK_SECONDS = 0.001  # a sandbox may forbid the system call
_EXPECTED = (errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR)

_libc = ctypes.CDLL(None, use_errno=True)
_wake_call = ctypes.CDLL(None).syscall  # without errno, which takes time to keep
_wake_call.argtypes = [ctypes.c_long] * 4


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Bells:
    """The bells of all ranks, as one of them sees them. Its threads share its own bell."""

    def __init__(self, segment: Segment) -> None:
        self._words, layout = segment.words, segment.layout
        self._rank, self._ranks = segment.rank, layout.ranks
        self._bell = [layout.word("bell", rank) for rank in range(layout.ranks)]
        self._asleep = [index + 1 for index in self._bell]
        start = ctypes.addressof(ctypes.c_char.from_buffer(segment.memory))
        self._address = [start + 8 * index for index in self._bell]
        self._numbers = itertools.count(1)
        self._sleepers = 0
        self._barrier = Lock()

    def ring(self, *ranks: int) -> None:
        """Wake those of them that sleep. To be called after what they wait for has been written."""
        with self._barrier:
            pass
        words = self._words
        for rank in ranks:
            if words[self._asleep[rank]]:
                # No two rings write the same value, so a sleeper's value differs after any of them.
                words[self._bell[rank]] = (next(self._numbers) * self._ranks + self._rank) & 0xFFFFFFFF
                _wake_call(_SYS_FUTEX, self._address[rank], _WAKE, _ALL)

    def sleep(self, done: Callable[[], bool], seconds: float) -> bool:
        """Sleep until rung, or for so long; whether it is done, in which case nobody has slept."""
        value = self._words[self._bell[self._rank]]
        self._count(1)
        try:
            if done():
                return True
            _wait(self._address[self._rank], value, seconds)
        finally:
            self._count(-1)
        return False

    def _count(self, change: int) -> None:
        with self._barrier:
            self._sleepers += change
            self._words[self._asleep[self._rank]] = self._sleepers


def _wait(address: int, value: int, seconds: float) -> None:
    limit = _Timespec(int(seconds), int(seconds % 1 * 1e9))
    failed = _libc.syscall(
        ctypes.c_long(_SYS_FUTEX),
        ctypes.c_void_p(address),
        ctypes.c_long(_WAIT),
        ctypes.c_long(value),
        ctypes.byref(limit),
    )
    if failed and ctypes.get_errno() not in _EXPECTED:
        time.sleep(min(seconds, _FALLBACK_SECONDS))
