"""The same bits at any world size: a fixed number of virtual shards, summed in a tree of fixed shape.

A sum of floating-point numbers depends on its order, and an all-reduce's order on the number of ranks. So each
global batch is cut into eight shards however many ranks there are; a rank computes each of its shards by itself
(a batch of other rows gives other bits), and all eight gradients are added as ((0+1)+(2+3))+((4+5)+(6+7)),
element by element. Each rank does that for its slice of the elements and the slices are then exchanged, which
changes no bit. Draws are keyed by the shard. The idea of virtual shards: EasyScale, arXiv 2208.14228.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lockstep.errors import RunFailed
from lockstep.strategies._buckets import Bucket
from lockstep.strategies.base import Batch, Group, Outcome, Shard
from lockstep.transports.base import Label, Transport

if TYPE_CHECKING:
    from lockstep.strategies.allreduce import AllReduce

SHARDS = 8


class Invariant:
    """One rank's part of the virtual shards."""

    def __init__(self, group: Group, transport: Transport | None) -> None:
        if group.world_size > SHARDS:
            raise RunFailed(
                f"distributed.world_size is {group.world_size}: reduction: invariant shares {SHARDS} virtual shards "
                f"among at most {SHARDS} ranks"
            )
        assert transport is not None
        self._transport = transport
        self._rank, self._size = group.rank, group.world_size
        self.shard = self._of(group.rank)
        self._gradients: dict[
            int, list[Tensor]
        ] = {}  # by bucket: one flat tensor for each of this rank's shards

    def _of(self, rank: int) -> Shard:
        return Shard(SHARDS * rank // self._size, SHARDS * (rank + 1) // self._size, SHARDS)

    def passes(self, strategy: "AllReduce", batch: Batch) -> Outcome:
        """A forward and backward pass over each of this rank's shards, their gradients kept apart."""
        self._gradients = {bucket.number: [] for bucket in strategy.buckets}
        loss, correct, start = 0.0, 0.0, 0
        for number in range(self.shard.first, self.shard.stop):
            rows = Shard(number, number + 1, SHARDS).rows(batch.global_samples)
            count = (rows.stop - rows.start) if batch.weight else 0
            if count:
                strategy.seed_draws("shard", number)
                if strategy.snapshots is not None:
                    strategy.snapshots.shard = number
                part = slice(start, start + count)
                # In memory of its own: where a view would begin depends on the number of ranks, and on that how
                # the rows are aligned, by which a matrix product chooses its order of sums.
                features, labels = batch.features[part].clone(), batch.labels[part].clone()
                piece = Batch(features, labels, 1.0, batch.global_samples)
                outcome = strategy.accumulate(piece)
                loss += outcome.loss * count
                correct += outcome.correct
            start += count
            self._keep(strategy.buckets)
        return Outcome(loss / start if start else 0.0, correct)

    def _keep(self, buckets: list[Bucket]) -> None:
        """Put this shard's gradients aside (zeros where the shard had no rows)."""
        for bucket in buckets:
            for place, parameter in enumerate(bucket.parameters):
                if parameter.grad is not None:
                    bucket.take(place)
            bucket.complete()
            bucket.ready.clear()
            self._gradients[bucket.number].append(bucket.flat.clone())

    def reduce(self, buckets: list[Bucket], step: int) -> None:
        """Sum all eight shards' gradients into each bucket, the same bits on every rank."""
        for bucket in buckets:
            self._transport.label = Label("invariant all_reduce", bucket.number, step)
            own = self._gradients[bucket.number]
            elements = bucket.flat.numel()
            mine = self._slice(elements, self._rank)
            shards = self._exchange(own, elements)
            bucket.flat[mine].copy_(tree_sum([shards[number] for number in range(SHARDS)]))
            self._share(bucket.flat)

    def _slice(self, elements: int, rank: int) -> slice:
        return slice(elements * rank // self._size, elements * (rank + 1) // self._size)

    def _exchange(self, own: list[Tensor], elements: int) -> dict[int, Tensor]:
        """This rank's slice of every shard: its own, and what its peers send of theirs."""
        mine = self._slice(elements, self._rank)
        shards = {self.shard.first + index: flat[mine] for index, flat in enumerate(own)}
        sends, receives = [], []
        for distance in range(1, self._size):
            source, to = (self._rank - distance) % self._size, (self._rank + distance) % self._size
            theirs = self._of(source)
            for number in range(theirs.first, theirs.stop):
                shards[number] = torch.empty_like(own[0][mine])
            for number in range(SHARDS):
                if self.shard.first <= number < self.shard.stop:
                    piece = own[number - self.shard.first][self._slice(elements, to)]
                    sends += [self._transport.send(piece, to, number)] if piece.numel() else []
            for number in range(theirs.first, theirs.stop):
                if shards[number].numel():
                    receives.append(self._transport.recv(shards[number], source, number))
        for message in (*receives, *sends):  # a send may have to wait until its peer has received another
            message.wait()
        return shards

    def _share(self, flat: Tensor) -> None:
        """Give the peers the finished slice and take theirs."""
        mine, sends, receives = self._slice(flat.numel(), self._rank), [], []
        for distance in range(1, self._size):
            source, to = (self._rank - distance) % self._size, (self._rank + distance) % self._size
            theirs = self._slice(flat.numel(), source)
            if mine.stop > mine.start:
                sends.append(self._transport.send(flat[mine], to, SHARDS))
            if theirs.stop > theirs.start:
                receives.append(self._transport.recv(flat[theirs], source, SHARDS))
        for message in (*receives, *sends):
            message.wait()


def tree_sum(parts: list[Tensor]) -> Tensor:
    """((0+1)+(2+3))+((4+5)+(6+7)): pairs, then pairs of pairs."""
    while len(parts) > 1:
        parts = [torch.add(parts[index], parts[index + 1]) for index in range(0, len(parts), 2)]
    return parts[0]
