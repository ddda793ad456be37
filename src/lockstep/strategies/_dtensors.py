"""Sharded tensors and the slices of a checkpoint: for every strategy whose parameters are DTensors.

torch's DTensor knows its mesh of ranks and how each dimension of the mesh divides the tensor; a checkpoint knows
blocks and offsets. Plain tensors among them are the same on every rank, and rank 0 saves them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from lockstep.strategies._layout import slot_like
from lockstep.strategies._state import Slice, Slices, Stored


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: memory shared with it, no communication."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def make_contiguous(module: nn.Module) -> None:
    """FSDP2 takes no weight that is laid out otherwise (transposed, channels last), and blocks of rows are cut here."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


def offsets_of(tensor: DTensor) -> tuple[int, ...]:
    """Where this rank's part begins in the whole."""
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offsets)


def slice_of(tensor: Tensor, rank: int, data: Tensor | None = None) -> Slice | None:
    """What this rank saves of a tensor, or of ``data`` that is spread like it.

    None where another rank saves the same elements.
    """
    if not isinstance(tensor, DTensor):
        return Slice.whole(tensor if data is None else data) if rank == 0 else None
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    for at, placement in zip(coordinate, tensor.placements, strict=True):
        if placement.is_replicate() and at:
            return None
    return Slice(tensor.to_local() if data is None else data, tuple(tensor.shape), offsets_of(tensor))


class Parts:
    """This rank's parts of a module's parameters as plain parameters, for the optimizer: they share the memory.

    An optimizer that works element by element need not know that there is more of a tensor elsewhere. Given plain
    ones it can use its fused kernels, not all of which DTensors have, and spares their dispatch at every operation.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.own = {name: nn.Parameter(local(p.detach())) for name, p in self.names.items()}

    def lend(self) -> None:
        """Before the optimizer's step: the gradients, and the memory where that has moved."""
        for name, parameter in self.names.items():
            own, here = self.own[name], local(parameter.detach())
            if (
                own.data_ptr() != here.data_ptr()
            ):  # padded at the first forward pass, where ranks have unequal parts
                own.data = here
            own.grad = None if parameter.grad is None else local(parameter.grad)

    def clear(self) -> None:
        """After it."""
        for name, parameter in self.names.items():
            parameter.grad = self.own[name].grad = None


def slices(module: nn.Module, parts: Parts, optimizer: Optimizer, rank: int) -> Slices:
    """What this rank adds to a checkpoint."""
    moments = {}
    for name, parameter in parts.names.items():
        own = parts.own[name]
        for key, value in optimizer.state.get(own, {}).items():
            if isinstance(value, Tensor):
                spread = value.dim() and value.shape == own.shape
                one = slice_of(parameter, rank, value) if spread else slice_of(value, rank)
                if one is not None:
                    moments[f"{name}/{key}"] = one
    return {"model": _own(module.state_dict().items(), rank), "optimizer": moments}


def _own(named: Iterable[tuple[str, Tensor]], rank: int) -> dict[str, Slice]:
    found = ((name, slice_of(tensor, rank)) for name, tensor in named)
    return {name: one for name, one in found if one is not None}


@torch.no_grad()
def restore(module: nn.Module, parts: Parts, optimizer: Optimizer, stored: Stored) -> None:
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
    for name, parameter in parts.names.items():
        prefix = f"{name}/"
        keys = [key for key in slots if key.startswith(prefix) and "/" not in key.removeprefix(prefix)]
        state = {
            (slot := key.removeprefix(prefix)): slot_like(
                slot, _slot(stored, key, parameter), local(parameter)
            )
            for key in keys
        }
        if state:
            optimizer.state[parts.own[name]] = state


def read_like(stored: Stored, part: str, name: str, tensor: Tensor) -> Tensor:
    """The block of a saved tensor that this rank holds of ``tensor``."""
    if not isinstance(tensor, DTensor):
        return stored.read(part, name)
    return stored.read(part, name, offsets_of(tensor), tensor.to_local().shape)


def _slot(stored: Stored, name: str, parameter: nn.Parameter) -> Tensor:
    """A moment of the optimizer, spread like its parameter; what is of another shape (a count) is not spread."""
    spread = stored.shape("optimizer", name) == tuple(parameter.shape)
    return read_like(stored, "optimizer", name, parameter) if spread else stored.read("optimizer", name)
