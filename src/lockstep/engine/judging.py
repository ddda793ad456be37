"""Loss and accuracy of a model on rows that it does not learn from, in memory that does not grow with the split."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lockstep.engine.features import Features, Table
from lockstep.parameters import Parameters
from lockstep.strategies._loss import correct, summed_loss
from lockstep.strategies._module_state import evaluating, seed_all, unchanged
from lockstep.strategies.base import Shard, key

MOST_ROWS = 8192  # at once
MOST_ELEMENTS = (
    2**20
)  # of the inputs at once, so that a large split does not need memory for all its activations
WIDTH = (
    4 * 64
)  # numbers that a model holds for a token, roughly, where a pixel or a measurement is one number


@dataclass
class Seen:
    """Sums over samples."""

    loss: float = 0.0
    correct: float = 0.0
    samples: int = 0

    def means(self) -> dict[str, float | int]:
        """Loss and accuracy over the samples; zeros where there are none, so that they count for nothing."""
        count = max(self.samples, 1)
        return {"loss": self.loss / count, "accuracy": self.correct / count, "samples": self.samples}


def rows_of_a_pass(parameters: Parameters) -> int:
    """The most rows that a rank trains on at once: its share of a global batch, or a micro-batch of it."""
    training = parameters.training
    share = -(-training.global_batch_size // parameters.distributed.world_size)
    return min(training.micro_batch_size or share, share)


def rows_at_once(features: Features, labels: Tensor, trained_rows: int) -> int:
    """As many rows as a training pass has, at least: those fit, and without gradients with room to spare."""
    size = features.elements * (WIDTH if labels.dim() > 1 else 1)
    return max(trained_rows, min(MOST_ROWS, MOST_ELEMENTS // max(size, 1)), 1)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    features: Features | Tensor,
    labels: Tensor,
    *,
    shard: Shard | None = None,
    trained_rows: int = 1,
    counted: bool = True,
    writes_weights: bool = False,
    look: Callable[[Tensor, Tensor], None] | None = None,
) -> Seen:
    """Judge a rank's slice of a split (all of it, if None) in evaluation mode. The model is not changed by it.

    Every rank makes the same number of passes where each has one slice, borrowing a row that does not count where
    its own have run out: a model whose weights are spread over the ranks needs all of them for every pass. ``look``
    is given the logits and labels of each pass. Where the rows are not ``counted`` here, another rank judges them, and
    this one only takes part. ``writes_weights``: the model writes to its parameters even in this mode.
    """
    if isinstance(features, Tensor):
        features = Table(features)
    rows, longest = slice(0, len(labels)), len(labels)
    if shard is not None:
        rows = shard.rows(len(labels))
        longest = rows.stop - rows.start
        if shard.stop - shard.first == 1:
            longest = -(-len(labels) // shard.parts)
    at_once = rows_at_once(features, labels, trained_rows)
    spans = [
        torch.arange(start, max(min(start + at_once, rows.stop), start))
        for start in range(rows.start, rows.start + longest, at_once)
    ]
    device = next((parameter.device for parameter in module.parameters()), labels.device)
    seen = Seen()
    with unchanged(module, parameters=writes_weights), evaluating(module):
        for number, span in enumerate(spans):
            counts = bool(len(span)) and counted
            chosen = span if len(span) else torch.zeros(1, dtype=torch.int64)
            inputs = features.take(chosen).to(device)
            for soon in spans[number + 1 : number + 1 + features.ahead]:
                features.expect(soon, None)
            seed_all(key("evaluation", int(chosen[0])))  # some models draw in this mode as well
            logits = module(inputs)
            # Not where the weights are: those that are kept in the host's memory are computed with on the GPU.
            truth = labels.index_select(0, chosen).long().to(logits.device)
            if counts:
                seen.loss += float(summed_loss(logits, truth))
                seen.correct += correct(logits, truth)
                seen.samples += len(truth)
                if look is not None:
                    look(logits, truth)
    return seen
