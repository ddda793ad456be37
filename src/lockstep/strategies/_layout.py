"""How tensors stand in memory: whatever belongs to a weight stands there as the weight itself does.

Fused optimizers go through the memory of weight, gradient and moments side by side, from each tensor's first element,
whatever their strides say. Where these differ they mix elements without a word, and where a weight's memory has gaps
or is shared by several of its elements they write beside it.
"""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lockstep.errors import RunFailed

COUNT = "step"  # torch's optimizers count a parameter's updates in a scalar of a type of its own


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Of the dimensions with several elements: no other stride means anything."""
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each a place of its own, in any order of the dimensions."""
    if not tensor.numel():
        return True
    expected = 1  # the stride that the dimension which varies next has where there are no gaps
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def shape_in_memory(tensor: Tensor) -> torch.Size:
    """The sizes of a dense tensor's dimensions, from the one that varies slowest to the one that varies fastest."""
    pairs = sorted(
        zip(tensor.stride(), range(tensor.dim()), strict=True), key=lambda each: (-each[0], each[1])
    )
    return torch.Size(tensor.shape[place] for _, place in pairs)


def like(values: Tensor, weight: Tensor) -> Tensor:
    """A copy of ``values`` with the strides, type and device of ``weight``, which has the same shape."""
    return torch.empty_like(weight, requires_grad=False).copy_(values)


def slot_like(key: str, value: Tensor, weight: Tensor) -> Tensor:
    """What an optimizer is to keep of a weight under ``key``, from a checkpoint: a copy, laid out as the weight.

    What is of another shape, and the count of updates, keep layout and type.
    """
    if key == COUNT or value.shape != weight.shape:
        return value.to(weight.device, copy=True)
    return like(value, weight)


def slots_like(state: Mapping[str, Tensor], name: str, weight: Tensor) -> dict[str, Tensor]:
    """All that a whole optimizer state (``name/key``) has of one weight."""
    prefix = f"{name}/"
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    return {key: slot_like(key, state[prefix + key], weight) for key in keys if "/" not in key}


def give_own_memory(module: nn.Module) -> list[str]:
    """Make every parameter and buffer dense, in place; the names of weights whose elements shared memory.

    RunFailed where the same memory belongs to another tensor as well, which would be cut off from it.
    """
    named = {id(t): (name, t) for name, t in (*module.named_parameters(), *module.named_buffers())}
    expanded = []
    for name, tensor in named.values():
        if is_lazy(tensor) or tensor.layout != torch.strided or is_dense(tensor):
            continue
        others = [other for other, each in named.values() if each is not tensor and _overlap(tensor, each)]
        if others:
            raise RunFailed(
                f"model.name: {name} is a view of memory that {others[0]} has as well, with strides "
                f"{tuple(tensor.stride())} for the shape {tuple(tensor.shape)}, which no optimizer here can update; "
                "allowed: one parameter in both places, or a .clone() of it"
            )
        if tensor.requires_grad and _shares_among_elements(tensor):
            expanded.append(name)
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
    return expanded


def is_lazy(tensor: Tensor) -> bool:
    """Whether it has no shape yet: of torch's lazy modules."""
    return isinstance(tensor, nn.UninitializedParameter | nn.parameter.UninitializedBuffer)


def storage_of(tensor: Tensor) -> int:
    """What identifies the memory that a tensor is a view of; also of tensors without any."""
    return int(tensor.untyped_storage()._cdata)


def _shares_among_elements(tensor: Tensor) -> bool:
    reach = 0  # of the dimensions that vary faster
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether some element of both is the same memory."""
    if is_lazy(other) or not (one.numel() and other.numel()) or storage_of(one) != storage_of(other):
        return False
    if one.is_meta or one.dtype != other.dtype:
        return True
    taken = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def guard(optimizer: Optimizer) -> None:
    """Before every step, lay gradients out as their weights; before the first two, compare all that it keeps."""
    steps = itertools.count()

    def before_step(*_: object) -> None:
        first = (
            next(steps) < 2
        )  # before the first it has what was loaded, before the second what it made itself
        for group in optimizer.param_groups:
            for name, weight in zip(group["param_names"], group["params"], strict=True):
                _lay_gradient_out(weight)
                if first:
                    _check(name, weight, optimizer.state.get(weight, {}))

    optimizer.register_step_pre_hook(before_step)


def _lay_gradient_out(weight: Tensor) -> None:
    gradient = weight.grad
    if gradient is None or gradient.layout != torch.strided or gradient.stride() == weight.stride():
        return
    if strides(gradient) != strides(weight):  # as a hook of the user's own may leave it
        weight.grad = like(gradient, weight)


def _check(name: str, weight: Tensor, state: Mapping[str, object]) -> None:
    if not is_dense(weight):
        raise RunFailed(
            f"the weight {name} has gaps in memory or shares it among its elements: {_said(weight)}"
        )
    for key, value in state.items():
        wrong = (
            isinstance(value, Tensor)
            and key != COUNT
            and value.shape == weight.shape
            and (strides(value), value.dtype) != (strides(weight), weight.dtype)
        )
        if wrong:
            raise RunFailed(
                f"the optimizer's {key} of {name} does not stand in memory as the weight does: {_said(value)}, and the "
                f"weight {_said(weight)}. Nothing was applied; this is an error of the strategy's, not of the model's"
            )


def _said(tensor: object) -> str:
    assert isinstance(tensor, Tensor)
    return f"strides {tuple(tensor.stride())} of {str(tensor.dtype).removeprefix('torch.')}"
