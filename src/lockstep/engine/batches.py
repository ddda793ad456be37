"""Which samples a rank sees at which step: a pure function, so that resuming is only a matter of "which step"."""

import math

import torch
from torch import Tensor

from lockstep.engine.features import Features, Table, map_split
from lockstep.strategies.base import Batch, Shard, key

__all__ = ["Batches", "map_split"]


class Batches:
    """Calls map a step, counted from 0, to this rank's share of that step's global batch.

    Each epoch is a permutation keyed by (seed, epoch); a global batch is the next ``global_batch_size`` of
    it, the last one of an epoch being whatever is left. So each sample comes exactly once per epoch at any
    world size, and nothing is padded, repeated or dropped.
    """

    def __init__(
        self, features: Features | Tensor, labels: Tensor, seed: int, global_batch_size: int, shard: Shard
    ) -> None:
        self.features = Table(features) if isinstance(features, Tensor) else features
        self.labels = labels
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.shard = shard
        self.steps_per_epoch = math.ceil(len(labels) / global_batch_size)
        self._orders: dict[int, Tensor] = {}

    def order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, counted from 0; the last two asked for are kept."""
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(key(self.seed, "order", epoch))
            last = list(self._orders.items())[-1:]
            self._orders = dict([*last, (epoch, torch.randperm(len(self.labels), generator=generator))])
        return self._orders[epoch]

    def whole(self, step: int) -> tuple[Tensor, int]:
        """The rows of the global batch that feeds update ``step + 1``, and its epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return self.order(epoch)[start : start + self.global_batch_size], epoch

    def __call__(self, step: int) -> Batch:
        """This rank's share of the global batch that feeds update ``step + 1``."""
        whole, epoch = self.whole(step)
        batch = self.share(whole, epoch)
        for ahead in range(1, self.features.ahead + 1):
            soon, its_epoch = self.whole(step + ahead)
            self.features.expect(soon[self.shard.rows(len(soon))], its_epoch)
        return batch

    def first(self, count: int) -> Batch:
        """This rank's share of the first ``count`` rows of the first global batch, not augmented."""
        return self.share(self.whole(0)[0][:count], None)

    def share(self, whole: Tensor, epoch: int | None) -> Batch:
        """This rank's share of some rows, augmented as in that epoch, or as they are where it is None."""
        rows = whole[self.shard.rows(len(whole))]
        weight = 1.0
        if not len(rows):
            rows, weight = whole[:1], 0.0
        return self.take(rows, epoch, len(whole), weight)

    def take(self, rows: Tensor, epoch: int | None, global_samples: int, weight: float = 1.0) -> Batch:
        """These rows, as a part of a global batch of so many samples."""
        labels = self.labels.index_select(0, rows).long()
        return Batch(self.features.take(rows, epoch), labels, weight, global_samples)
