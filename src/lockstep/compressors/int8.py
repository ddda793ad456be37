"""A quarter of the bytes: whole numbers from -127 to 127 and one scale for each block of elements.

Sent by a rank for n fp32 gradients: 2 (N - 1)/N * (n + 4 n / block_elements) bytes, and one byte a parameter for
each peer. Blocks with a scale each: Dettmers, ICLR 2016 (arXiv 1511.04561), and Alistarh et al., QSGD, NIPS 2017
("bucketing"); here to the nearest, with error feedback instead of a random draw.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.compressors._coded import Coded
from lockstep.compressors.base import as_bytes

_MOST = 127


class Int8(Coded):
    """An element's error is at most 1/254 of its block's largest in each of two roundings.

    ``error_feedback`` keeps it and adds it to the next gradient. A block that holds a NaN or an infinity arrives
    as NaN.
    """

    def __init__(
        self,
        *,
        block_elements: Annotated[int, Field(ge=1, le=1_000_000_000)] = 256,
        error_feedback: bool = True,
    ) -> None:
        super().__init__(error_feedback=error_feedback)
        self.block_elements = block_elements

    def encode(self, values: Tensor) -> Tensor:
        """All scales, then all elements."""
        elements = values.numel()
        missing = -elements % self.block_elements
        blocks = nn.functional.pad(values, (0, missing)).view(-1, self.block_elements)
        scales = (blocks.abs().amax(dim=1) / _MOST).to(torch.float32)
        wide = scales.to(values.dtype).unsqueeze(1)
        codes = (blocks / wide).round_().clamp_(-_MOST, _MOST)
        # Too small for a scale: zero. Not finite: zero times such a scale is NaN, in all of the block.
        codes = torch.where((wide > 0) & wide.isfinite(), codes, 0)
        return as_bytes(scales, codes.to(torch.int8).view(-1)[:elements])

    def decode(self, code: Tensor, like: Tensor) -> Tensor:
        """Each element times its block's scale."""
        start = code.numel() - like.numel()
        scales = code[:start].view(torch.float32).to(like.dtype)
        wide = scales.repeat_interleave(self.block_elements)[: like.numel()]
        return code[start:].view(torch.int8).to(like.dtype) * wide

    def size(self, elements: int) -> int:
        """One byte an element, four a block."""
        return elements + 4 * -(-elements // self.block_elements)
