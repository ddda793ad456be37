"""Gradients under FSDP of models that leave parameters unused: a router's experts, layers that are dropped at random.

FSDP reduces the gradients that a rank has, and the ranks must have the same ones. So where the model was seen to leave
some out, the ranks agree after each forward pass on what any of them used, and a rank adds zeros for what it did not.
What no rank used keeps no gradient at all, as in one process: an optimizer must not move it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lockstep.errors import RunFailed
from lockstep.strategies._autograd_graph import leaf_uses


class _Touch(torch.autograd.Function):
    """Returns its first tensor, and in the backward pass gives zeros to those of the others that need them."""

    @staticmethod
    def forward(
        ctx: Any, unused: "UnusedParameters", names: list[str], output: Tensor, *own: Tensor
    ) -> Tensor:
        """The output as it is."""
        ctx.unused, ctx.names, ctx.own = unused, names, own
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient as it came; zeros for what other ranks used and this one did not."""
        zeros = [
            torch.zeros_like(parameter)
            if name in ctx.unused.needed
            else None  # their memory may be given back
            for name, parameter in zip(ctx.names, ctx.own, strict=True)
        ]
        return None, None, gradients[0], *zeros


class UnusedParameters:
    """For the blocks that FSDP gathers, by name; the root's name is empty."""

    def __init__(
        self, wrapped: dict[str, FSDPModule], total: Callable[[Tensor], Tensor], module: nn.Module
    ) -> None:
        self._total = total
        self._names = [name for name, p in module.named_parameters() if p.requires_grad and p.dim()]
        self._known: dict[Tensor, str] = {}  # what a pass went through, unsharded
        self.needed: set[str] = set()  # used by another rank in this pass, and not by this one
        for _, block, places in blocks_with_places(wrapped):
            # Before FSDP's own hook, which lets go of the weights.
            block.register_forward_hook(self._hook(places), prepend=True)

    def _hook(self, places: list[tuple[nn.Module, str, str]]) -> Any:
        def touch(_: nn.Module, __: Any, output: Any) -> Any:
            if not torch.is_grad_enabled():
                return output
            own = {name: part._parameters[key] for part, key, name in places}
            gathered = {n: p for n, p in own.items() if p is not None and not is_shard(p) and p.requires_grad}
            self._known |= {p: name for name, p in gathered.items()}
            leaves, shape = tree_flatten(output)
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaves[place] = _Touch.apply(self, [*gathered], leaf, *gathered.values())
                    return tree_unflatten(leaves, shape)
            return output

        return touch

    def agree(self, loss: Tensor) -> None:
        """After the forward pass, on every rank."""
        reached = {self._known.get(leaf) for leaf in leaf_uses(loss, _Touch.__name__)}
        used = torch.tensor([float(name in reached) for name in self._names], dtype=torch.float64)
        anywhere = self._total(used.clone())
        self.needed = {
            name
            for name, here, there in zip(self._names, used.tolist(), anywhere.tolist(), strict=True)
            if there and not here
        }
        self._known.clear()


def blocks_with_places(
    wrapped: dict[str, FSDPModule],
) -> "Iterator[tuple[str, Any, list[tuple[nn.Module, str, str]]]]":
    """Each block by name, with the parameters that are gathered with it and no other."""
    inner = {id(each) for each in wrapped.values()}
    for prefix, block in wrapped.items():
        yield prefix, block, own_places(block, prefix, inner)


def own_places(block: Any, prefix: str, inner: set[int]) -> "list[tuple[nn.Module, str, str]]":
    """(module, key, name in the whole) of each parameter that is gathered with this block and no other."""
    found = [
        (block, key, f"{prefix}.{key}" if prefix else key)
        for key, p in block._parameters.items()
        if p is not None
    ]
    for name, child in block.named_children():
        if id(child) not in inner:
            found += own_places(child, f"{prefix}.{name}" if prefix else name, inner)
    return found


def is_shard(parameter: Tensor) -> bool:
    """Whether it is a share of a parameter, which is gathered at another time."""
    return isinstance(parameter, DTensor) and any(
        name in ("shard", "replicate", "data") for name in parameter.device_mesh.mesh_dim_names or ()
    )


def skipped(blocks: dict[str, nn.Module], unused: Sequence[str]) -> set[str]:
    """Blocks of which some pass used no parameter, and their siblings of the same kind, which others may leave out."""
    left_out = set(unused)
    whole = {
        name
        for name, block in blocks.items()
        if all(f"{name}.{key}" in left_out for key, p in block.named_parameters() if p.requires_grad)
    }
    kinds = {(name.rpartition(".")[0], type(blocks[name])) for name in whole}
    return {name for name, block in blocks.items() if (name.rpartition(".")[0], type(block)) in kinds}


class SameGradients:
    """Whether all ranks have gradients of the same parameters: two numbers in a sum that is taken anyway."""

    def __init__(self, module: nn.Module, ranks: int) -> None:
        self._named = [(name, p) for name, p in module.named_parameters() if p.requires_grad and p.dim()]
        self._ranks = ranks

    def numbers(self) -> list[float]:
        """This rank's, to be summed over all."""
        mark = float(sum(place for place, (_, p) in enumerate(self._named, start=1) if p.grad is not None))
        return [mark, mark * mark]

    def check(self, sums: Tensor, total: Callable[[Tensor], Tensor], advice: str) -> None:
        """RunFailed on all ranks where some have a gradient that others have not."""
        mark, squares = float(sums[0]), float(sums[1])
        if self._ranks * squares == mark * mark:
            return
        here = torch.tensor([float(p.grad is not None) for _, p in self._named], dtype=torch.float64)
        for (name, _), ranks in zip(self._named, total(here).tolist(), strict=True):
            if 0 < ranks < self._ranks:
                raise RunFailed(
                    f"{ranks:.0f} of {self._ranks} ranks used {name} in this step, so their gradients cannot be "
                    f"reduced together. Nothing was applied. {advice}"
                )
