"""Pipeline schedules as data: which rank computes what, when, if every forward pass took one unit of time.

A schedule is a row of actions for each rank. An action is the forward pass of one stage for one micro-batch (``F``),
its backward pass (``B``, two units), or the two halves of that: the gradient of the input (``I``), which the stage
before waits for, and that of the weights (``W``), which nobody does. Nothing here needs torch: the same rows are
proven (`pipeline_prove`), drawn (`pipeline_draw`) and carried out (`strategies/_pipeline_run`).

The rows are made by one of two rules. A strict rank does forward passes until it keeps as many activations as its
limit allows, then a backward pass for each further one. A greedy rank, whose backward is in two halves, takes an
``I`` if one is ready, else a forward pass within its limit, else a ``W``. Beyond that the schedules differ in the
order of the forward passes, the limit, and where stages stand. The ranks follow the order of their row and not its
times, so it stands whatever the passes really take.

- ``gpipe``: all forward passes, then all backward. Huang et al., arXiv 1811.06965.
- ``1f1b``: rank r of p keeps p - r micro-batches at most. Narayanan et al., arXiv 2006.09503.
- ``interleaved``: several stages a rank, one round after the other. Narayanan et al., arXiv 2104.04473.
- ``zero_bubble``: with the gradients of weights where a rank would idle; with one stage a rank every rank keeps what
  1f1b's first one does (ZB-H1 of Qi et al., arXiv 2401.10241), with more it is greedy.
- ``zero_bubble_v``: two stages a rank, placed there and back, so that the first rank has the last stage too.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["F", "B", "I", "W"]
UNITS: dict[Kind, int] = {"F": 1, "B": 2, "I": 1, "W": 1}
FIXED_STAGES = {"gpipe": 1, "1f1b": 1, "zero_bubble_v": 2}  # a rank; the others take any number
NAMES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zero_bubble_v")


@dataclass(frozen=True, order=True)
class Action:
    """One thing that a rank does: ``start`` is the unit of time at which it would begin."""

    start: int
    kind: Kind
    stage: int
    micro_batch: int

    @property
    def stop(self) -> int:
        """The unit of time at which it would be over."""
        return self.start + UNITS[self.kind]


@dataclass(frozen=True)
class Schedule:
    """The rows of all ranks; ``placement`` has the rank of each stage."""

    name: str
    micro_batches: int
    placement: tuple[int, ...]
    rows: tuple[tuple[Action, ...], ...]

    @property
    def ranks(self) -> int:
        """How many take part."""
        return len(self.rows)

    @property
    def units(self) -> int:
        """The time from the first action to the end of the last."""
        return max(row[-1].stop for row in self.rows)

    @property
    def idle_share(self) -> float:
        """The share of their time that the ranks wait, all passes of all stages taking equally long."""
        busy = sum(UNITS[action.kind] for row in self.rows for action in row)
        return 1 - busy / (self.ranks * self.units)

    def kept(self, rank: int) -> int:
        """The most activations that a rank keeps at once: a forward pass adds one, ``B`` or ``W`` drops it."""
        now = most = 0
        for action in self.rows[rank]:
            now += {"F": 1, "I": 0}.get(action.kind, -1)
            most = max(most, now)
        return most


def classic_bubble(ranks: int, micro_batches: int) -> float:
    """(p - 1) / (m + p - 1): the idle share of gpipe and 1f1b where all stages take equally long."""
    return (ranks - 1) / (micro_batches + ranks - 1)


def stages_of(name: str, rank: int, ranks: int, stages_per_rank: int) -> list[int]:
    """The stages of a rank, in the order of the forward pass."""
    if name == "zero_bubble_v":
        return [rank, 2 * ranks - 1 - rank]
    return [rank + ranks * turn for turn in range(stages_per_rank)]


@functools.lru_cache(maxsize=64)
def make(name: str, ranks: int, micro_batches: int, stages_per_rank: int = 1) -> Schedule:
    """The schedule; ``stages_per_rank`` is 1 for gpipe and 1f1b, and 2 for zero_bubble_v."""
    assert name in NAMES and ranks >= 1 and micro_batches >= 1, (name, ranks, micro_batches)
    workers = [_Worker.of(name, rank, ranks, micro_batches, stages_per_rank) for rank in range(ranks)]
    last = max(stage for worker in workers for stage in worker.stages)
    done: dict[tuple[str, int, int], int] = {}  # when passes are over; a whole backward pass counts as an I
    time = 0
    while any(worker.has_work for worker in workers):
        for worker in workers:
            if worker.free_at <= time:
                worker.act(time, done, last)
        if not (running := [worker.free_at for worker in workers if worker.free_at > time]):
            # All wait for each other, as where the last round is not full: let them do what they can.
            if not any([worker.act(time, done, last, insist=False) for worker in workers]):
                for worker in workers:
                    worker.limit += 1
            continue
        time = min(running)
    placement = {stage: rank for rank, worker in enumerate(workers) for stage in worker.stages}
    rows = tuple(tuple(worker.row) for worker in workers)
    return Schedule(name, micro_batches, tuple(placement[stage] for stage in range(last + 1)), rows)


@dataclass
class _Worker:
    """One rank while a schedule is made."""

    stages: list[int]
    split: bool  # backward is in two halves
    limit: int  # of activations kept
    forwards: list[tuple[int, int]]  # (stage, micro-batch) still to do, in order
    backwards: list[tuple[int, int]]
    free_choice: bool  # of the order among stages
    weights: list[tuple[int, int]] = field(default_factory=list)  # whose I is done and whose W is not
    row: list[Action] = field(default_factory=list)
    free_at: int = 0
    kept: int = 0
    plan: list[tuple[Kind, int]] = field(
        default_factory=list
    )  # the whole row, where it is no matter of a rule
    ahead: int = 1 << 30  # how many more forward passes the first stage may have done than the last

    @classmethod
    def of(cls, name: str, rank: int, ranks: int, count: int, stages_per_rank: int) -> "_Worker":
        stages = stages_of(name, rank, ranks, stages_per_rank)
        turns = len(stages)
        groups = [range(start, min(start + ranks, count)) for start in range(0, count, ranks)]
        forwards = [(stage, number) for group in groups for stage in stages for number in group]
        backwards = [(stage, number) for group in groups for stage in stages[::-1] for number in group]
        if name == "gpipe":
            limit = count * turns
        elif name == "zero_bubble_v":
            limit = 2 * ranks
        elif turns == 1:
            limit = ranks - (rank if name == "1f1b" else 0)
        else:
            behind = ranks - 1 - (rank if name == "interleaved" else 0)
            limit = 2 * behind + (turns - 1) * ranks + 1
        worker = cls(stages, name.startswith("zero"), limit, forwards, backwards, name == "zero_bubble_v")
        if name == "zero_bubble_v":
            worker.ahead = 2 * (ranks - rank) - 1
        elif name == "zero_bubble" and turns == 1:
            worker.plan = _handcrafted(rank, ranks, count)
        return worker

    @property
    def has_work(self) -> bool:
        return bool(self.forwards or self.backwards or self.weights)

    def act(self, time: int, done: dict[tuple[str, int, int], int], last: int, insist: bool = True) -> bool:
        """Begin what the rule says, if anything; whether something was begun."""
        chosen = self._choose(time, done, last, insist)
        if chosen is None:
            return False
        kind, (stage, number) = chosen
        if kind == "F":
            self.forwards.remove((stage, number))
            self.kept += 1
        elif kind == "W":
            self.weights.remove((stage, number))
            self.kept -= 1
        else:
            self.backwards.remove((stage, number))
            if kind == "I":
                self.weights.append((stage, number))
            else:
                self.kept -= 1
        self.row.append(Action(time, kind, stage, number))
        self.free_at = self.row[-1].stop
        if kind != "W":
            done["I" if kind == "B" else kind, stage, number] = self.free_at
        return True

    def _choose(
        self, time: int, done: dict[tuple[str, int, int], int], last: int, insist: bool
    ) -> tuple[Kind, tuple[int, int]] | None:
        def over(kind: str, stage: int, number: int) -> bool:
            return done.get((kind, stage, number), time + 1) <= time

        if self.plan:
            kind, number = self.plan[0]
            stage = self.stages[0]
            ready = {
                "F": stage == 0 or over("F", stage - 1, number),
                "I": over("F", stage, number) and (stage == last or over("I", stage + 1, number)),
            }
            if not ready.get(kind, True):
                return None
            self.plan.pop(0)
            return kind, (stage, number)
        waits = insist and not self.split and self.forwards and self.kept < self.limit
        for stage, number in () if waits else self._next(self.backwards):
            if over("F", stage, number) and (stage == last or over("I", stage + 1, number)):
                return ("I" if self.split else "B"), (stage, number)
        for stage, number in self._next(self.forwards) if self.kept < self.limit else ():
            if (stage == 0 or over("F", stage - 1, number)) and self._may_run_ahead(stage):
                return "F", (stage, number)
        return ("W", self.weights[0]) if self.weights else None

    def _next(self, queue: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """What may be next in a queue: its head, or with a free choice the head of each stage, the last first."""
        if not self.free_choice:
            yield from queue[:1]
            return
        for wanted in self.stages[::-1]:
            yield from [entry for entry in queue if entry[0] == wanted][:1]

    def _may_run_ahead(self, stage: int) -> bool:
        if stage != self.stages[0]:
            return True
        left = [sum(entry[0] == each for entry in self.forwards) for each in (stage, self.stages[-1])]
        return left[1] - left[0] < self.ahead


def _handcrafted(rank: int, ranks: int, count: int) -> list[tuple[Kind, int]]:
    """ZB-H1: rank r puts off the gradients of weights by r micro-batches, which keeps p activations on every rank.

    All that is left of the bubble is the time in which the first micro-batch reaches the last rank.
    """
    forwards, weights = list(range(count)), list(range(count))
    row: list[tuple[Kind, int]] = []
    for _ in range(min(ranks - rank, count)):
        row.append(("F", forwards.pop(0)))
    for number in range(count):
        row.append(("I", number))
        if number >= rank:
            row.append(("W", weights.pop(0)))
        if forwards:
            row.append(("F", forwards.pop(0)))
    return row + [("W", number) for number in weights]
