"""Strategies of a user's own, for tests: each checks after a step what its transport's messages said of it."""

import os
import signal
import time

from lockstep.strategies.allreduce import AllReduce
from lockstep.strategies.naive import Naive


def check(strategy, bucket):
    label = strategy.transport.label
    assert (label.step, label.bucket) == (strategy.draws[1] + 1, bucket), label


class LabelledAllReduce(AllReduce):
    def __init__(self, group):
        super().__init__(group, bucket_mb=0.0005)

    def sync(self):
        norm = super().sync()
        assert len(self.buckets) > 1
        check(self, len(self.buckets) - 1)
        return norm


class LabelledInvariant(LabelledAllReduce):
    def __init__(self, group):
        AllReduce.__init__(self, group, reduction="invariant", bucket_mb=0.0005)


class LabelledNaive(Naive):
    def sync(self):
        norm = super().sync()
        check(self, len([*self.module.parameters()]) - 1)
        return norm


class DiesBeforeItsLine(Naive):
    """Rank 1 is gone a second after the others have all of its 8th step, and leaves no line of it."""

    applied = 0

    def apply(self):
        super().apply()
        self.applied += 1
        if self.applied == 8 and self.group.rank == 1:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
