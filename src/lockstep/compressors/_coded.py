"""Compressors that write every element in fewer bits: reduce-scatter and all-gather of codes, sums in fp32."""

import torch
from torch import Tensor

from lockstep.collectives.schedule import chunk_bounds
from lockstep.compressors.base import Compressor, Part, as_bytes, exchange
from lockstep.transports.base import Transport


class Coded(Compressor):
    """Each rank sums one chunk from its peers' codes and sends the sum as codes again.

    So every element is rounded twice, however many ranks there are, and a rank sends 2 (N - 1)/N of the codes,
    as a ring sends of the gradients: the ratio is the codes' at any world size. Gathering everyone's codes
    would save the second rounding and lose the ratio (N - 1 times the codes). With error feedback the chunk's
    owner keeps what the second rounding leaves out (Tang et al., DoubleSqueeze, ICML 2019).
    With the codes of a chunk travels one byte for each parameter: its mark.
    """

    def encode(self, values: Tensor) -> Tensor:
        """(elements,) in fp32 or fp64 -> (bytes,) uint8, of the length that ``size`` says."""
        raise NotImplementedError

    def decode(self, code: Tensor, like: Tensor) -> Tensor:
        """The way back, the same bits on every rank; ``like`` is (elements,), of the type wanted."""
        raise NotImplementedError

    def size(self, elements: int) -> int:
        """Bytes of a code."""
        raise NotImplementedError

    def reduce(self, part: Part, transport: Transport) -> None:
        """Two exchanges of codes."""
        total = self.residuals.added_to(part)
        bounds = chunk_bounds(total.numel(), transport.size)
        chunks = [total[start:stop] for start, stop in bounds]
        marks = self._reduce_scatter(part, chunks, transport)
        mine = chunks[transport.rank]
        codes = [torch.empty(self.size(chunk.numel()), dtype=torch.uint8) for chunk in chunks]
        codes[transport.rank] = self.encode(mine)
        exchange(transport, "all_gather of codes", [codes[transport.rank]] * transport.size, codes)
        results = [self.decode(code, chunk) for code, chunk in zip(codes, chunks, strict=True)]
        mine -= results[transport.rank]
        self.residuals.keep(part, total)
        part.gradients.copy_(torch.cat(results))
        part.marks.copy_(marks)

    def _reduce_scatter(self, part: Part, chunks: list[Tensor], transport: Transport) -> Tensor:
        """Leave in this rank's chunk the sum, and in the others what their codes left out; returns the marks."""
        rank, count = transport.rank, len(part.shapes)
        marks = part.marks.to(torch.uint8)
        mine = chunks[rank]
        outgoing, incoming = [], []
        for other, chunk in enumerate(chunks):
            code = marks[:0] if other == rank else self.encode(chunk)
            if other != rank:
                chunk -= self.decode(code, chunk)  # noqa: PLW2901 - in place, as meant
            outgoing.append(as_bytes(code, marks))
            incoming.append(torch.empty(self.size(mine.numel()) + count, dtype=torch.uint8))
        exchange(transport, "reduce_scatter of codes", outgoing, incoming)
        parts, counts = [], torch.zeros(count, dtype=torch.int32)
        for other, message in enumerate(incoming):  # in the order of the ranks
            body = message.numel() - count
            own = other == rank
            parts.append(mine.clone() if own else self.decode(message[:body], mine))
            counts += marks if own else message[body:]
        mine.copy_(parts[0])
        for other_part in parts[1:]:
            mine += other_part
        return counts
