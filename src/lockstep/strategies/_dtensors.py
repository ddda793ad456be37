"""Sharded tensors and the slices of a checkpoint: for every strategy whose parameters are DTensors.

torch's DTensor knows its mesh of ranks and how each dimension of the mesh divides the tensor; a checkpoint knows
blocks and offsets. Plain tensors among them are the same on every rank, and rank 0 saves them.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from lockstep.strategies._state import Slice, Slices, Stored


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: memory shared with it, no communication."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def offsets_of(tensor: DTensor) -> tuple[int, ...]:
    """Where this rank's part begins in the whole."""
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offsets)


def copies(tensor: Tensor) -> int:
    """On how many ranks of its mesh each element of a tensor stands; 1 for a plain one."""
    if not isinstance(tensor, DTensor):
        return 1
    count = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        count *= size if placement.is_replicate() else 1
    return count


def slice_of(tensor: Tensor, rank: int) -> Slice | None:
    """What this rank saves of a tensor: None where another rank saves the same elements."""
    if not isinstance(tensor, DTensor):
        return Slice.whole(tensor) if rank == 0 else None
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    for at, placement in zip(coordinate, tensor.placements, strict=True):
        if placement.is_replicate() and at:
            return None
    return Slice(tensor.to_local(), tuple(tensor.shape), offsets_of(tensor))


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that an optimizer has state for, by the name that the checkpoint keeps."""
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def slices(module: nn.Module, optimizer: Optimizer, rank: int) -> Slices:
    """What this rank adds to a checkpoint."""
    slots = (
        (f"{name}/{key}", value)
        for name, parameter in trained(module)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    )
    return {"model": _own(module.state_dict().items(), rank), "optimizer": _own(slots, rank)}


def _own(named: Iterable[tuple[str, Tensor]], rank: int) -> dict[str, Slice]:
    found = ((name, slice_of(tensor, rank)) for name, tensor in named)
    return {name: one for name, one in found if one is not None}


@torch.no_grad()
def restore(module: nn.Module, optimizer: Optimizer, stored: Stored) -> None:
    """Fill in this rank's parts, reading no others. RuntimeError where the checkpoint is of another module."""
    own = module.state_dict()
    saved = set(stored.names("model"))
    problems = [f"missing {name}" for name in own if name not in saved]
    problems += [f"unexpected {name}" for name in sorted(saved - own.keys())]
    problems += [
        f"{name} has the shape {stored.shape('model', name)}, and {tuple(tensor.shape)} is needed"
        for name, tensor in own.items()
        if name in saved and stored.shape("model", name) != tuple(tensor.shape)
    ]
    if problems:
        raise RuntimeError("; ".join(problems[:8]))
    for name, tensor in own.items():
        local(tensor).copy_(read_like(stored, "model", name, tensor))
    slots = stored.names("optimizer")
    for name, parameter in trained(module):
        prefix = f"{name}/"
        keys = [key for key in slots if key.startswith(prefix) and "/" not in key.removeprefix(prefix)]
        state = {key.removeprefix(prefix): _slot(stored, key, parameter) for key in keys}
        if state:
            optimizer.state[parameter] = state


def read_like(stored: Stored, part: str, name: str, tensor: Tensor) -> Tensor:
    """The block of a saved tensor that this rank holds of ``tensor``."""
    if not isinstance(tensor, DTensor):
        return stored.read(part, name)
    return stored.read(part, name, offsets_of(tensor), tensor.to_local().shape)


def _slot(stored: Stored, name: str, parameter: nn.Parameter) -> Tensor:
    """A moment of the optimizer, spread like its parameter; what is of another shape (a count) is not spread."""
    if not isinstance(parameter, DTensor) or stored.shape("optimizer", name) != tuple(parameter.shape):
        return stored.read("optimizer", name).to(parameter.device if parameter.dim() else "cpu")
    block = read_like(stored, "optimizer", name, parameter).to(parameter.to_local().device)
    return DTensor.from_local(
        block,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
