"""Waiting for another process without a system call where it is quick, and without a core where it is not."""

import ctypes
import time
from collections.abc import Callable

from lockstep.linux import cores
from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._segment import Segment
from lockstep.transports.base import Label, Transport

_SPINS = 200  # looks without giving way: about 20 microseconds
_YIELD_SECONDS = 0.002  # then giving way to whoever else is ready
_SLEEP_SHARE, _LONGEST_SLEEP = 0.05, 0.001  # then sleeping, for a share of what has been waited already

# Through ctypes, since os.sched_yield keeps other threads of this process waiting before Python 3.12.
give_way = ctypes.CDLL(None).sched_yield


class Waiting:
    """How one rank waits for a peer to have done something."""

    def __init__(self, transport: Transport, segment: Segment) -> None:
        self._transport, self._segment = transport, segment
        self._spins = _SPINS if transport.size <= cores() else 0

    def until(self, done: Callable[[], bool], peer: int, label: Label) -> None:
        """Return when it holds. Raises TransportError where the peer has died or left, or time is up."""
        for _ in range(self._spins):
            if done():
                return
        began = time.monotonic()
        looked, waited = began, RunningTime()
        while not done():
            now = time.monotonic()
            if now - looked > SLICE_SECONDS:
                self._look(done, peer, label)
                if waited.seconds() > self._transport.timeout_seconds:
                    raise self._transport.timed_out(peer, label, "nothing arrived from")
                looked = now
            if now - began < _YIELD_SECONDS:
                give_way()
            else:
                time.sleep(min((now - began) * _SLEEP_SHARE, _LONGEST_SLEEP))

    def _look(self, done: Callable[[], bool], peer: int, label: Label) -> None:
        """Whether the peer, or anybody whom it may be waiting for, is no longer there."""
        segment, transport = self._segment, self._transport
        for rank in [peer, *(rank for rank in range(transport.size) if rank not in (peer, transport.rank))]:
            left, dead = segment.left(rank), segment.dead(rank)
            if (dead or left) and not done():  # what it wrote before it went still counts
                if left and rank != peer:
                    continue
                how = "has left" if left else "died"
                raise transport.gone(rank, label, how)
