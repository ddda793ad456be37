"""Half the bytes by rounding to bfloat16: the range of fp32 with 8 significant bits.

Sent by a rank for n fp32 gradients: 2 (N - 1)/N * 2 n bytes, and one byte a parameter for each peer. Kalamkar et
al., 2019 (arXiv 1905.12322).
"""

import torch
from torch import Tensor

from lockstep.compressors._coded import Coded
from lockstep.compressors.base import as_bytes


class Bf16(Coded):
    """Relative error of at most 2^-8 in each of two roundings. Nothing overflows that fp32 holds."""

    def __init__(self) -> None:
        super().__init__(error_feedback=False)

    def encode(self, values: Tensor) -> Tensor:
        """To the nearest; infinities and NaN stay what they are."""
        return as_bytes(values.to(torch.bfloat16))

    def decode(self, code: Tensor, like: Tensor) -> Tensor:
        """Exact."""
        return code.view(torch.bfloat16).to(like.dtype)

    def size(self, elements: int) -> int:
        """Two bytes an element."""
        return 2 * elements
