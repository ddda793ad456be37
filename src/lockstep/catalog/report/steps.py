"""What every step of a run measured, over all its ranks, folded into few enough buckets to draw.

A bucket keeps the mean, the least and the most of each quantity, so that no spike is lost between two pixels.
A step's loss is the mean over the samples of all ranks; its length is that of the slowest rank. The time of many
steps is that of the rank that spent most on all of them, as in the results: a sum of each step's slowest counts the
time twice that one rank waits for another.

Of the time a rank spends in `sync`, what the last rank to arrive spends there too is the price of exchanging
gradients; the rest is waiting for that last rank. So a straggler is the rank that waits least.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from lockstep.catalog.report.epoch_lines import together
from lockstep.catalog.report.metric_lines import Line, Rank, merged, open_ranks, windows_over
from lockstep.catalog.report.values import LARGEST, number, whole
from lockstep.catalog.run import Run

MOST_BUCKETS = 1500
MOST_LANE_VALUES = 40_000  # over all ranks; a page must stay light
MOST_LANES = 64
MOST_BYTES = 96 << 20  # of metrics that are read in full: some 270,000 lines, 3 seconds
WINDOWS = MOST_BUCKETS
CURVES = ("loss", "learning_rate", "grad_norm", "samples_per_second", "waiting")
PARTS = ("data", "compute", "sync", "waiting", "other")


@dataclass
class Curve:
    """A quantity by bucket; None where nothing was measured."""

    mean: list[float | None] = field(default_factory=list)
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)


@dataclass
class Lane:
    """A rank's mean seconds a step by part and bucket, and how often it was the last to be ready."""

    rank: int
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    last: list[float] = field(default_factory=list)  # share of the bucket's steps
    steps_last: int = 0
    kept_waiting_seconds: float = 0.0  # how much later than the median rank it was ready, in those steps


@dataclass
class Steps:
    """Buckets of steps. ``seconds`` and ``samples`` count from the first step read to a bucket's end."""

    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=lambda: {name: Curve() for name in CURVES})
    lanes: list[Lane] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    steps_read: int = 0
    share_read: float = 1.0
    attempts: int = 0
    ranks: int = 0

    def __len__(self) -> int:
        return len(self.first)


def read(run: Run, after: int = 0, most_buckets: int = MOST_BUCKETS, whole_only: bool = False) -> Steps:
    """The run's steps after one. ``whole_only``: up to the newest step that every rank has written."""
    ranks = open_ranks(run)
    try:
        lasts = [rank.last_step() for rank in ranks]
        final = (min if whole_only else max)(lasts, default=0)
        steps = Steps(attempts=max((rank.attempts for rank in ranks), default=0), ranks=len(ranks))
        if final <= after:
            return steps
        # From where its lines begin: a run with a parent starts after its parent's step.
        begin = max(
            after, min((start for rank in ranks for start in rank.starts if start < final), default=0)
        )
        size = sum(rank.size_bytes() for rank in ranks)
        share = 1.0 if after else min(1.0, MOST_BYTES / max(1, size))
        windows = windows_over(begin + 1, final, share, WINDOWS)
        steps.share_read = sum(window.last + 1 - window.first for window in windows) / (final - begin)
        width = max(1, math.ceil((final - begin) / most_buckets))
        fold = _Fold(steps, ranks, begin, final, width)
        for step, lines in merged(ranks, windows):
            if step == 0:
                fold.epoch(lines[0] or {})
            elif begin < step <= final:
                fold.step(step, lines)
        fold.end()
        if whole_only:
            steps.epochs = [epoch for epoch in steps.epochs if epoch.pop("ranks") == len(ranks)]
        return steps
    finally:
        for rank in ranks:
            rank.close()


Measured = tuple[float, float, float, float, float, float]


def _measured(line: Line) -> Measured:
    """Samples, loss (NaN where there is none), and seconds: of the step, in sync, for data, computing."""
    get = line.get
    found = [
        value if type(value) is float and 0.0 <= value < LARGEST else max(0.0, number(value) or 0.0)
        for value in (get("step_seconds"), get("sync_seconds"), get("data_seconds"), get("compute_seconds"))
    ]
    loss = number(get("loss"))
    samples = max(0.0, number(get("samples")) or 0.0)
    seconds, sync, data, compute = found
    return samples, math.nan if loss is None else loss, seconds, sync, data, compute


class _Fold:
    """Takes steps in their order and fills buckets."""

    def __init__(self, steps: Steps, ranks: list[Rank], begin: int, final: int, width: int) -> None:
        self.steps, self.begin, self.final, self.width = steps, begin, final, width
        self.bucket = -1
        self.lanes = [Lane(rank.number) for rank in ranks[:MOST_LANES]]
        self.ranks_seconds = [0.0] * len(ranks)  # of each rank, from the first step on
        self.epochs: dict[int, dict[str, Any]] = {}
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.tallies: dict[str, list[float]] = {}
        self.samples = 0.0
        self.bucket_seconds: dict[int, float] = {}  # by rank
        self.rank_parts = [[0.0] * 5 for _ in self.lanes]
        self.rank_steps = [0] * len(self.lanes)
        self.rank_last = [0] * len(self.lanes)

    def step(self, number_: int, lines: list[Line | None]) -> None:
        """Add a step: the lines of the ranks that have one."""
        bucket = (number_ - self.begin - 1) // self.width
        if bucket != self.bucket:
            self.end()
            self.bucket = bucket
        self.count += 1
        weight = total = longest = spent = waited = 0.0
        measured = [None if line is None else _measured(line) for line in lines]
        for rank, numbers in enumerate(measured):
            if numbers is None:
                continue
            samples, loss, seconds, sync, _, _ = numbers
            weight += samples
            total += samples * loss  # NaN where one is not known
            spent += seconds
            waited += sync
            longest = max(longest, seconds)
            self.bucket_seconds[rank] = self.bucket_seconds.get(rank, 0.0) + seconds
        self.samples += weight
        leader = next(line for line in lines if line is not None)
        self._tally("loss", total / weight if weight else None)
        self._tally("learning_rate", number(leader.get("learning_rate")))
        self._tally("grad_norm", number(leader.get("grad_norm")))
        self._tally("samples_per_second", weight / longest if longest else None)
        self._tally("waiting", min(1.0, waited / spent) if spent and len(lines) > 1 else None)
        self._share_out(measured[: len(self.lanes)])

    def _tally(self, name: str, value: float | None) -> None:
        if value is None or math.isnan(value):
            return
        tally = self.tallies.get(name)
        if tally is None:
            self.tallies[name] = [1, value, value, value]
            return
        tally[0] += 1
        tally[1] += value
        if value < tally[2]:
            tally[2] = value
        elif value > tally[3]:
            tally[3] = value

    def _share_out(self, measured: list[Measured | None]) -> None:
        """Each rank's time by part, and who was ready last."""
        exchange = min((numbers[3] for numbers in measured if numbers is not None), default=0.0)
        ready: list[tuple[float, int]] = []
        for index, numbers in enumerate(measured):
            if numbers is None:
                continue
            _, _, seconds, sync, data, compute = numbers
            own = max(0.0, seconds - sync)
            ready.append((own, index))
            sums = self.rank_parts[index]
            sums[0] += data
            sums[1] += compute
            sums[2] += exchange
            sums[3] += sync - exchange
            sums[4] += max(0.0, own - data - compute)
            self.rank_steps[index] += 1
        if len(ready) > 1:
            ready.sort()
            latest, index = ready[-1]
            median = ready[(len(ready) - 1) // 2][0]
            if latest > median:
                self.rank_last[index] += 1
                self.lanes[index].steps_last += 1
                self.lanes[index].kept_waiting_seconds += latest - median

    def epoch(self, line: Line) -> None:
        """Add one rank's share of an epoch."""
        epoch = whole(line.get("epoch"))
        if epoch is None or len(self.epochs) > 20_000 or epoch > 10**9:
            return
        kept = self.epochs.setdefault(epoch, {"epoch": epoch, "step": line["step"], "shares": []})
        kept["shares"].append(line)

    def end(self) -> None:
        """Close the bucket that is open."""
        steps = self.steps
        steps.epochs = [together(kept) for _, kept in sorted(self.epochs.items())]
        steps.lanes = self.lanes
        if not self.count:
            return
        first = self.begin + self.bucket * self.width + 1
        last = min(self.final, first + self.width - 1)
        # A window covers a part of its bucket: what it took stands for the whole.
        stretch = (last + 1 - first) / self.count if steps.share_read < 1 else 1.0
        steps.first.append(first)
        steps.last.append(last)
        for rank, seconds in self.bucket_seconds.items():
            self.ranks_seconds[rank] += seconds * stretch
        steps.seconds.append(max(self.ranks_seconds))
        steps.samples.append((steps.samples[-1] if steps.samples else 0.0) + self.samples * stretch)
        steps.steps_read += self.count
        for name, curve in steps.curves.items():
            tally = self.tallies.get(name)
            mean = tally[1] / tally[0] if tally else None
            if tally and name == "samples_per_second":
                mean = self.samples / max(
                    self.bucket_seconds.values()
                )  # the mean of speeds favours short steps
            curve.mean.append(mean)
            curve.low.append(tally[2] if tally else None)
            curve.high.append(tally[3] if tally else None)
        for lane, sums, taken, was_last in zip(
            self.lanes, self.rank_parts, self.rank_steps, self.rank_last, strict=True
        ):
            for part, value in zip(PARTS, sums, strict=True):
                lane.parts[part].append(value / taken if taken else 0.0)
            lane.last.append(was_last / self.count)
        self._clear()
