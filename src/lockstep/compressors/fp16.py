"""Half the bytes by rounding to IEEE half precision, each chunk moved into its narrow range first.

Sent by a rank for n fp32 gradients: 2 (N - 1)/N * 2 n bytes, 4 for each message and one byte a parameter for each
peer. The shift is the idea of loss scaling (Micikevicius et al., ICLR 2018), done per message.
"""

import torch
from torch import Tensor

from lockstep.compressors._coded import Coded
from lockstep.compressors.base import as_bytes

_TOP = 15  # the largest element is moved below 2^15; half precision ends at 65,504
_LIMIT = 126  # of the shift, so that it and its inverse are normal numbers of fp32


class Fp16(Coded):
    """Relative error of at most 2^-11 in each of two roundings, for elements down to 2^-28 of a chunk's largest.

    Each message says by which power of two it was multiplied, which changes no significant bit: sums larger
    than half precision holds, and gradients smaller than it holds, both arrive.
    """

    def __init__(self) -> None:
        super().__init__(error_feedback=False)

    def encode(self, values: Tensor) -> Tensor:
        """The shift, then the elements; infinities and NaN stay what they are."""
        if not values.numel():
            return torch.zeros(self.size(0), dtype=torch.uint8)
        largest = values.nan_to_num(0.0, 0.0, 0.0).abs().max()
        shift = (_TOP - torch.frexp(largest).exponent).clamp(-_LIMIT, _LIMIT).to(torch.int32)
        return as_bytes(shift, torch.ldexp(values, shift).to(torch.float16))

    def decode(self, code: Tensor, like: Tensor) -> Tensor:
        """Exact, but for what is below the range of fp32."""
        return torch.ldexp(code[4:].view(torch.float16).to(like.dtype), -code[:4].view(torch.int32))

    def size(self, elements: int) -> int:
        """Two bytes an element, four for the shift."""
        return 4 + 2 * elements
