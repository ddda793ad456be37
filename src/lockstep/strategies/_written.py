"""Writes to weights in the forward pass, seen as they happen, where they would be lost.

A tensor counts the operations that change it in place. What is written through ``.data`` is not counted.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.errors import RunFailed

ADVICE = "Nothing of this step was applied. Allowed for such a model: distributed.strategy=ddp or allreduce"
Places = list[tuple[nn.Module, str, str]]  # module, key, name in the whole


def versions(named: Mapping[str, Tensor]) -> dict[str, int]:
    """How often each has been changed in place."""
    return {name: tensor._version for name, tensor in named.items()}


def refuse_writes(before: Mapping[str, int], named: Mapping[str, Tensor], lost: str) -> None:
    """RunFailed for a tensor that was changed since; ``lost`` says why the change does not stay."""
    for name, tensor in named.items():
        if before.get(name, tensor._version) != tensor._version:
            raise RunFailed(f"the forward pass wrote to {name}, and {lost}. {ADVICE}")


def watch(block: nn.Module, places: Places, is_whole: Callable[[Tensor], bool], lost: str) -> None:
    """Look at a block's own weights around each of its training passes, while it has them whole."""
    seen: list[dict[str, int]] = []

    def whole() -> dict[str, Tensor]:
        named = {name: part._parameters[key] for part, key, name in places}
        return {name: tensor for name, tensor in named.items() if tensor is not None and is_whole(tensor)}

    def before(*_: Any) -> None:
        seen.append(versions(whole()) if torch.is_grad_enabled() else {})

    def after(*_: Any) -> None:
        known = seen.pop()
        if torch.is_grad_enabled():
            refuse_writes(known, whole(), lost)

    block.register_forward_pre_hook(before)  # behind FSDP's, which gathers
    block.register_forward_hook(after, prepend=True)  # before FSDP's, which lets go
