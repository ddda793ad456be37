"""A model's tensors in the run's precision, each in memory that an optimizer can update."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.strategies._layout import give_own_memory, is_lazy, storage_of

PRECISIONS = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.float32, "fp16": torch.float32}
"""What parameters, gradients and optimizer state are kept in: mixed precision keeps them whole."""

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_DEFAULT = (torch.float32, torch.complex64)  # what torch makes tensors of where nobody says otherwise
MOST_NAMED = 3


def take_in(module: nn.Module, precision: torch.dtype) -> list[str]:
    """Convert a model in place and make its tensors dense. Returns what its author would be surprised by, in sentences.

    Complex tensors keep their imaginary parts, and tensors that share memory go on sharing it.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    odd = {name: tensor.dtype for name, tensor in named.items() if _is_odd(tensor.dtype, precision)}
    if any(tensor.dtype != target(tensor.dtype, precision) for tensor in named.values()):
        module._apply(_Conversion(named.values(), precision))  # type: ignore[no-untyped-call]
    notes = []
    if odd:
        kinds = sorted({_word(kind) for kind in odd.values()})
        notes.append(
            f"{_listed(list(odd))} {'is' if len(odd) == 1 else 'are'} {' and '.join(kinds)} in the model and "
            f"{_word(precision)} in this run, as training.precision says: of mixed precision, too, all that is kept is"
        )
    if expanded := give_own_memory(module):
        notes.append(
            f"each element of {_listed(expanded)} is trained by itself, although the model made several of them of "
            "one place in memory (expand)"
        )
    return notes


def target(kind: torch.dtype, precision: torch.dtype) -> torch.dtype:
    """What a tensor of this type becomes; whole numbers and booleans stay."""
    if kind.is_complex:
        return _COMPLEX[precision]
    return precision if kind.is_floating_point else kind


def _is_odd(kind: torch.dtype, precision: torch.dtype) -> bool:
    return kind not in _DEFAULT and kind != target(kind, precision)


class _Conversion:
    """Converts tensors one by one, and memory that several of them share once for all."""

    def __init__(self, tensors: Any, precision: torch.dtype) -> None:
        self._precision = precision
        self._users = Counter(storage_of(tensor) for tensor in tensors if not is_lazy(tensor))
        self._converted: dict[tuple[int, torch.dtype], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        kind = target(tensor.dtype, self._precision)
        if kind == tensor.dtype or is_lazy(tensor) or self._users[storage_of(tensor)] < 2:
            return tensor.to(kind)
        key = storage_of(tensor), tensor.dtype
        if key not in self._converted:
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._converted[key] = tensor.detach().as_strided((count,), (1,), 0).to(kind)
        return self._converted[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (
        f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    )


def _word(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
