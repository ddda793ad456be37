"""Waiting for another process: looking where that is quick, and sleeping without a core where it is not.

Where every rank has a core of its own, a peer is usually microseconds behind, which looking costs less than sleeping.
With more ranks than cores, whoever looks takes the core from the rank that it waits for, so it sleeps at once.
"""

import ctypes
import time
from collections.abc import Callable

from lockstep.linux import cores
from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._bells import Bells
from lockstep.transports._segment import Segment
from lockstep.transports.base import Label, Transport

_SPINS = 200  # looks without giving way: about 20 microseconds
_YIELD_SECONDS = 0.00005  # then giving way to whoever else is ready, about as long as being woken takes

# Through ctypes, since os.sched_yield keeps other threads of this process waiting before Python 3.12.
give_way = ctypes.CDLL(None).sched_yield


class Waiting:
    """How one rank waits for a peer to have done something, and tells its peers that it has."""

    def __init__(self, transport: Transport, segment: Segment) -> None:
        self._transport, self._segment = transport, segment
        self._bells = Bells(segment)
        self.ring = self._bells.ring
        self._looks_first = transport.size <= cores()

    def until(self, done: Callable[[], bool], peer: int, label: Label) -> None:
        """Return when it holds. Raises TransportError where the peer has died or left, or time is up."""
        if self._looks_first and _soon(done):
            return
        waited, looked = RunningTime(), time.monotonic()
        while not self._bells.sleep(done, SLICE_SECONDS):
            now = time.monotonic()
            if now - looked >= SLICE_SECONDS:
                self._look(done, peer, label)
                if waited.seconds() > self._transport.timeout_seconds:
                    raise self._transport.timed_out(peer, label, "nothing arrived from")
                looked = now

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


def _soon(done: Callable[[], bool]) -> bool:
    """Look for as long as being woken would take."""
    for _ in range(_SPINS):
        if done():
            return True
    end = time.perf_counter() + _YIELD_SECONDS
    while time.perf_counter() < end:
        if done():
            return True
        give_way()
    return False
