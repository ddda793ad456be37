"""Which samples a rank sees at which step: a pure function, so that resuming is only a matter of "which step"."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.strategies.base import Batch, Shard, key


def map_split(file: Path, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """A split's features and labels. The bytes are mapped, not read: all ranks share the same pages.

    Any precision but the one on disk (fp32) costs a private copy, made once.
    """
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor("features").to(precision), tensors.get_tensor("labels")


class Batches:
    """Calls map a step, counted from 0, to this rank's share of that step's global batch.

    Each epoch is a permutation keyed by (seed, epoch); a global batch is the next ``global_batch_size`` of
    it, the last one of an epoch being whatever is left. So each sample comes exactly once per epoch at any
    world size, and nothing is padded, repeated or dropped.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, seed: int, global_batch_size: int, shard: Shard
    ) -> None:
        self.features, self.labels = features, labels
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.shard = shard
        self.steps_per_epoch = math.ceil(len(labels) / global_batch_size)
        self._order: tuple[int, Tensor] | None = None

    def order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, counted from 0; the last one asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(key(self.seed, "order", epoch))
            self._order = epoch, torch.randperm(len(self.labels), generator=generator)
        return self._order[1]

    def __call__(self, step: int) -> Batch:
        """This rank's share of the global batch that feeds update ``step + 1``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        whole = self.order(epoch)[start : start + self.global_batch_size]
        rows = whole[self.shard.rows(len(whole))]
        weight = 1.0
        if not len(rows):
            rows, weight = whole[:1], 0.0
        return Batch(
            self.features.index_select(0, rows), self.labels.index_select(0, rows), weight, len(whole)
        )
