"""How a model is cut up for FSDP: which of its parts are gathered together, over which ranks, in which precision."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from lockstep.errors import RunFailed
from lockstep.strategies._blocks import blocks
from lockstep.strategies._joining import mesh_of_ranks
from lockstep.strategies._reads import Reads


def separable(module: nn.Module, reads: Reads | None = None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The blocks to wrap, and those that are left to the root, with the reason.

    A parameter that is used in two places has to be gathered for both at once. ``reads`` is what a pass has shown.
    """
    uses = _uses(module)
    chosen, left = {}, {}
    for name, block in blocks(module).items():
        if block is module:
            continue
        if any(uses[number] > count for number, count in _uses(block).items()):
            left[name] = "it shares a parameter with what is outside of it"
        elif reads is not None and (weight := reads.read_outside(block)) is not None:
            left[name] = f"{weight} is read outside of it"
        else:
            chosen[name] = block
    return chosen, left


def _uses(module: nn.Module) -> dict[int, int]:
    """In how many places below a module each parameter stands."""
    found: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            found[id(parameter)] = found.get(id(parameter), 0) + 1
    return found


def mesh_of(device: str, ranks: int, within: int, sharding: str) -> DeviceMesh:
    """All ranks in a row, or replicas of groups of ``within``."""
    if sharding != "hybrid":
        return mesh_of_ranks(device, (ranks,), ("shard",))
    return mesh_of_ranks(device, (ranks // within, within), ("replicate", "shard"))


def policy(
    module: nn.Module, compute: torch.dtype | None, reduce: torch.dtype | None
) -> MixedPrecisionPolicy:
    """What is computed in ``compute`` and summed in ``reduce``; None: as the parameters are."""
    if compute is None and reduce is None:
        return MixedPrecisionPolicy()
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    # Said outright: what None means for sums has changed between versions of torch.
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce or own, output_dtype=own)


def group_size(ranks: int, sharding: str, wanted: int | None) -> int:
    """How many ranks share one copy of the parameters. Raises RunFailed where that does not divide them."""
    where = "distributed.strategy.ranks_per_group"
    if sharding != "hybrid":
        if wanted is not None:
            raise RunFailed(
                f"{where}: found {wanted} beside sharding: {sharding}, allowed: null; or set sharding to hybrid"
            )
        return ranks
    if wanted is None:
        wanted = max(size for size in range(1, ranks // 2 + 1) if ranks % size == 0) if ranks > 1 else 1
    if ranks % wanted:
        fitting = ", ".join(str(size) for size in range(1, ranks + 1) if ranks % size == 0)
        raise RunFailed(
            f"{where}: found {wanted} for {ranks} ranks, allowed: {fitting}, which divide them equally"
        )
    return wanted


def rows(parameter: Tensor, size: int, rank: int) -> int:
    """The elements of a rank's rows, as torch.chunk cuts them."""
    if not parameter.dim() or not parameter.numel():
        return parameter.numel()
    most = -(-parameter.shape[0] // size)
    return max(min(most, parameter.shape[0] - rank * most), 0) * (parameter.numel() // parameter.shape[0])


def least_bytes(sizes: list[int], again: bool, ranks: int, within: int) -> int:
    """What a rank sends in a step at the least, of what is gathered together; the root comes last.

    All-gathers (twice, where ``again``: but the root once) and a reduce-scatter in each group, and an all-reduce of
    the shares over the groups.
    """
    blocks, root, groups = sum(sizes[:-1]), sizes[-1], ranks // within
    passes = blocks * (3 if again else 2) + root * 2
    return round(passes * (within - 1) / within + 2 * (groups - 1) / groups * (blocks + root) / within)


def own_bytes(wrapped: Any, dtype: torch.dtype | None = None) -> int:
    """What is gathered when this module is: its parameters without those of modules that are wrapped themselves."""
    inner = {
        id(parameter)
        for part in wrapped.modules()
        if part is not wrapped and issubclass(type(part), FSDPModule)
        for parameter in part.parameters()
    }
    own = (parameter for parameter in wrapped.parameters() if id(parameter) not in inner)
    return sum(_sizes(own, dtype))


def gathered_bytes(module: nn.Module, again: bool, size: int, dtype: torch.dtype | None) -> int:
    """The most of the weights that a rank of a group of ``size`` holds whole; ``module`` may be on meta.

    The root's stay from its forward pass on, and every block's, unless they are gathered ``again``: then one block's
    stand at a time. What is gathered arrives in one piece before it is laid out as weights, and stands twice then.
    """
    root, blocks = _pieces(module, dtype, lambda _: True)
    return root + (max(blocks) if again else sum(blocks)) + (max(root, *blocks) if size > 1 else 0)


def whole_gradient_bytes(module: nn.Module, in_pieces: bool, dtype: torch.dtype | None) -> int:
    """The most of the gradients that are not yet reduced, in the precision ``dtype`` that they are summed in.

    A block's are reduced when it is done, the root's at the end; and all of them at the last micro-batch only.
    """
    root, blocks = _pieces(module, dtype, lambda parameter: parameter.requires_grad)
    return root + (sum(blocks) if in_pieces else max(blocks))


def _pieces(
    module: nn.Module, dtype: torch.dtype | None, wanted: Callable[[nn.Parameter], bool]
) -> tuple[int, list[int]]:
    """The bytes of the root's own parameters, and those of each block; a block of none where there is no other."""

    def bytes_of(part: nn.Module) -> int:
        return sum(_sizes((p for p in part.parameters() if wanted(p)), dtype))

    blocks = [bytes_of(block) for block in separable(module)[0].values()]
    return bytes_of(module) - sum(blocks), [*blocks, 0]


def _sizes(parameters: Iterable[Tensor], dtype: torch.dtype | None) -> Iterator[int]:
    """Single numbers are not gathered: every rank has them."""
    return (p.numel() * (dtype.itemsize if dtype else p.element_size()) for p in parameters if p.dim())
