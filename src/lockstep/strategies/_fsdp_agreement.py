"""Ranks agree on what they are about to gather or reduce, before they do.

FSDP issues its collectives as each rank's own forward and backward pass come to a block. A model that chooses its path
by sample can take another one on each rank: then gloo mixes the weights of different blocks if they are of equal size,
and aborts or stalls if they are not. A sum of a few numbers over shared memory takes microseconds, so every collective
is preceded by one, and a difference ends the run with the names of both blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

from lockstep.errors import RunFailed

GATHER, REDUCE, SUM = range(3)
_WHAT = ("gathers the weights of {}", "reduces the gradients of {}", "is done with its passes")
_NUMBERS, _KINDS = 1 << 20, 4

Total = Callable[[Tensor], Tensor]


class Agreement:
    """One rank's view. ``total`` sums a small tensor over all ranks, in place; ``names`` are those of the blocks.

    ``advice`` says what a model is allowed to do that goes different ways.
    """

    def __init__(self, rank: int, size: int, total: Total, names: Sequence[str], advice: str) -> None:
        self._rank, self._size, self._total = rank, size, total
        self._names, self._advice = names, advice

    def reach(self, kind: int, number: int = 0, elements: int = 0) -> None:
        """Wait until every rank is about to do the same. RunFailed on all of them where one is not."""
        codes = torch.zeros(self._size, dtype=torch.int64)
        codes[self._rank] = code = (elements * _NUMBERS + number) * _KINDS + kind + 1
        codes = self._total(codes)
        if bool((codes == code).all()):
            return
        found = codes.tolist()
        other = next(rank for rank, each in enumerate(found) if each != found[0])
        raise RunFailed(
            f"rank 0 {self._in_words(found[0])} where rank {other} {self._in_words(found[other])}: the ranks go "
            "different ways through the model, and a block has to be used by all of them in the same order. "
            f"{self._advice}"
        )

    def _in_words(self, code: int) -> str:
        code, kind = divmod(code - 1, _KINDS)
        return _WHAT[kind].format(self._names[code % _NUMBERS] or "what no block holds")


class AgreedAllGather(DefaultAllGather):
    """torch's own, of the block with this number."""

    def __init__(self, agreement: Agreement, number: int) -> None:
        self._agreement, self._number = agreement, number

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        """When all ranks are about to gather it."""
        self._agreement.reach(GATHER, self._number, input_tensor.numel())
        return super().__call__(output_tensor, input_tensor, *arguments, **options)


class AgreedReduceScatter(ReduceScatter):
    """Another one, of the gradients of the block with this number."""

    def __init__(self, agreement: Agreement, number: int, inner: ReduceScatter) -> None:
        self._agreement, self._number, self._inner = agreement, number, inner

    def allocate(self, *arguments: Any, **options: Any) -> Tensor:
        """As the other one does."""
        return self._inner.allocate(*arguments, **options)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        """When all ranks are about to reduce them."""
        self._agreement.reach(REDUCE, self._number, input_tensor.numel())
        return self._inner(output_tensor, input_tensor, *arguments, **options)


def install(agreement: Agreement, wrapped: Sequence[FSDPModule], reduce_scatter: ReduceScatter) -> None:
    """Let every block's collectives wait for the agreement; ``reduce_scatter`` is what sums."""
    for number, each in enumerate(wrapped):
        each.set_custom_all_gather(AgreedAllGather(agreement, number))
        each.set_custom_reduce_scatter(AgreedReduceScatter(agreement, number, reduce_scatter))
