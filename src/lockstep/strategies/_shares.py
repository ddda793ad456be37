"""What a strategy is given and what it gives back: the ranks, a rank's slice of a batch, and what it saw of it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The ranks that train together, as one of them sees it."""

    rank: int
    world_size: int
    rendezvous: Path
    timeout_seconds: float

    @property
    def record(self) -> Path:
        """The run's folder: the rendezvous stands in its ``.live/``."""
        return self.rendezvous.parent.parent


@dataclass(frozen=True)
class Shard:
    """Slices ``first`` to ``stop - 1`` of ``parts`` equal ones."""

    first: int
    stop: int
    parts: int

    def rows(self, count: int) -> slice:
        """The rows of ``count`` that are in it; sizes of slices differ by one at most."""
        return slice(count * self.first // self.parts, count * self.stop // self.parts)


@dataclass(frozen=True)
class Batch:
    """This rank's share of one global batch.

    ``features`` is (samples, *shape) and ``labels`` (samples,) or (samples, length). ``weight`` is 1, or 0 for
    a share that is empty: it then holds one borrowed sample which counts for nothing, because a model must still
    run for this rank to take part in the collectives. ``global_samples`` counts the samples over all ranks.
    """

    features: Tensor
    labels: Tensor
    weight: float
    global_samples: int

    @property
    def samples(self) -> int:
        """How many samples of this share count."""
        return len(self.labels) if self.weight else 0

    def micro_batches(self, size: int | None, least: int = 1) -> "list[Batch]":
        """Pieces of at most ``size`` samples, ``least`` of them or more, their sizes differing by one at most.

        None: in one piece. Where there are fewer samples than pieces, the last ones hold a borrowed one that counts
        for nothing.
        """
        rows = len(self.labels)
        count = max(-(-rows // size), least) if size is not None else 1
        if count == 1:
            return [self]
        pieces = [
            Shard(number, number + 1, min(count, rows)).rows(rows) for number in range(min(count, rows))
        ]
        found = [replace(self, features=self.features[piece], labels=self.labels[piece]) for piece in pieces]
        borrowed = replace(self, features=self.features[:1], labels=self.labels[:1], weight=0.0)
        return found + [borrowed] * (count - len(found))


@dataclass
class Outcome:
    """What a rank saw of its own share: ``loss`` is the mean over its samples, 0.0 where it had none.

    ``correct`` counts samples; one with several predictions counts by the share of them that is right.
    """

    loss: float
    correct: float


def key(*parts: int | str) -> int:
    """63 bits that depend on every part alike: what random draws are keyed by."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def clock() -> float:
    """Seconds on a clock that never goes back; the one that every span of a step is taken from."""
    return perf_counter()
