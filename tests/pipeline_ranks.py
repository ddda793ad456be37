"""The ranks of a pipeline as threads of one process: strategies on the transport `queue`, without runs around them."""

import copy
import itertools
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lockstep.engine import lazy_dynamo
from lockstep.strategies import pipeline
from lockstep.strategies.base import Batch, Group, Outcome
from lockstep.strategies.single import Single

_numbers = itertools.count()
lazy_dynamo.install()


_ALONE = threading.Lock()


class Pipeline(pipeline.Pipeline):
    """A rank that is a thread: all share one generator, so only one at a time may look what its model draws."""

    def inspect(self, *arguments: Any) -> Any:
        with _ALONE:
            return super().inspect(*arguments)


@dataclass
class Rank:
    """What a rank has seen after some steps."""

    strategy: Any
    outcomes: list[Outcome]
    norms: list[float]
    logits: torch.Tensor | None = None


def batch_of(rows: int, shape: tuple[int, ...] = (6,), classes: int = 4, seed: int = 0) -> Batch:
    """Random rows in fp64."""
    generator = torch.Generator().manual_seed(seed + rows)
    features = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return Batch(features, torch.randint(classes, (rows,), generator=generator), 1.0, rows)


def trained(
    strategy: Any,
    module: nn.Module,
    batches: list[Batch],
    clip: float | None,
    prepare: Any,
    settled: threading.Barrier,
) -> Rank:
    """Some steps of Adam on one rank."""
    strategy.place(module)
    strategy.max_grad_norm = clip
    prepare(strategy)
    try:
        strategy.settle(batches[0])
    except BaseException:
        settled.abort()
        raise
    settled.wait(20)
    strategy.optimizer = torch.optim.Adam(
        [p for p in strategy.module.parameters() if p.requires_grad], lr=0.01
    )
    seen = Rank(strategy, [], [])
    for step, batch in enumerate(batches):
        strategy.draws = 3, step
        seen.outcomes.append(strategy.forward_backward(batch))
        seen.norms.append(strategy.sync())
        strategy.apply()
    strategy.module.eval()
    with torch.no_grad():
        seen.logits = strategy.module(batches[0].features)
    return seen


def alone(module: nn.Module, batches: list[Batch], clip: float | None = None) -> Rank:
    """The single process."""
    group = Group(0, 1, Path("nowhere"), 60.0)
    return trained(Single(group), copy.deepcopy(module), batches, clip, lambda _: None, threading.Barrier(1))


def together(
    ranks: int,
    module: nn.Module,
    batches: list[Batch],
    clip: float | None = None,
    prepare: Any = lambda _: None,
    **options: Any,
) -> list[Rank]:
    """A pipeline; raises what a rank raised."""
    place = Path(tempfile.gettempdir()) / f"pipeline-{next(_numbers)}"
    results: list[Any] = [None] * ranks
    # Not in the threads, since parsing source in several at once can fail in Python 3.11.
    made = [Pipeline(Group(rank, ranks, place, 20.0), transport="queue", **options) for rank in range(ranks)]

    settled = threading.Barrier(ranks)

    def one(rank: int) -> None:
        try:
            results[rank] = trained(made[rank], copy.deepcopy(module), batches, clip, prepare, settled)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


def whole(ranks: list[Rank], part: str = "model") -> dict[str, torch.Tensor]:
    """What the ranks' slices make together; each tensor is given once."""
    found: dict[str, torch.Tensor] = {}
    for rank in ranks:
        for name, one in rank.strategy.slices()[part].items():
            assert name not in found and tuple(one.data.shape) == one.shape
            found[name] = one.data.detach()
    return found


def difference(ranks: list[Rank], single: Rank) -> float:
    """The largest, over weights and the optimizer's state."""
    state = single.strategy.state()
    worst = 0.0
    for part in ("model", "optimizer"):
        mine = whole(ranks, part)
        assert mine.keys() == state[part].keys()
        for name, tensor in state[part].items():
            if tensor.numel():
                worst = max(worst, float((mine[name] - tensor).abs().max()))
    return worst
