"""Only the largest elements, and where they stand; the rest waits until it has grown.

Sent by a rank for n gradients, of which k = ratio * n are chosen: (N - 1) * (k * (4 + 4) bytes + one byte a
parameter) for fp32 (value and index). It grows with the ranks, where a ring's 2 (N - 1)/N * 4 n does not: the
ratio is 1 / (N * ratio). Aji and Heafield, EMNLP 2017 (arXiv 1704.05021); Stich et al., "Sparsified SGD
with memory", NeurIPS 2018 (arXiv 1809.07599).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lockstep.compressors.base import Compressor, Part, as_bytes, exchange
from lockstep.transports.base import Transport


class TopK(Compressor):
    """``ratio`` of each bucket's elements, the largest in magnitude; at least one.

    Each rank chooses for itself and all ranks send equally many. Without ``error_feedback`` most of the gradient
    is never seen. Elements then come rarely and all at once, which is what SGD's theory allows for; Adam moves less
    far for one large gradient than for many small ones, and wants more steps or a larger learning rate.
    """

    def __init__(
        self, *, ratio: Annotated[float, Field(gt=0, le=1)] = 0.01, error_feedback: bool = True
    ) -> None:
        super().__init__(error_feedback=error_feedback)
        self.ratio = ratio

    def chosen(self, elements: int) -> int:
        """How many of a bucket's elements are sent."""
        return max(1, round(self.ratio * elements)) if elements else 0

    def reduce(self, part: Part, transport: Transport) -> None:
        """Gather everyone's choice, and add it up in the order of the ranks."""
        total = self.residuals.added_to(part)
        assert total.numel() < 1 << 31, "an index has 32 bits"
        count = self.chosen(total.numel())
        places = total.abs().topk(count, sorted=False).indices  # NaN counts as the largest of all
        marks = part.marks.to(torch.uint8)
        own = as_bytes(total[places], places.to(torch.int32), marks)
        total[places] = 0
        self.residuals.keep(part, total)
        messages = [torch.empty_like(own) for _ in range(transport.size)]
        messages[transport.rank] = own
        exchange(transport, "all_gather of top-k", [own] * transport.size, messages)
        self._add_up(part, messages, count, total.dtype)

    def _add_up(self, part: Part, messages: list[Tensor], count: int, dtype: torch.dtype) -> None:
        result = torch.zeros(part.gradients.numel(), dtype=dtype)
        marks = torch.zeros(len(part.shapes), dtype=torch.int32)
        split = count * dtype.itemsize
        for message in messages:  # no index is in a message twice, so the order of the sums is fixed
            values = message[:split].view(dtype)
            places = message[split : split + 4 * count].view(torch.int32)
            result.index_add_(0, places, values)
            marks += message[split + 4 * count :]
        part.gradients.copy_(result)
        part.marks.copy_(marks)
