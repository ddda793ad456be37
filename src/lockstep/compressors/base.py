"""The seam between a bucket of gradients and how little of it travels.

What is left out of one step's message is kept and added to the next step's gradient ("error feedback": Seide et
al., Interspeech 2014; Karimireddy et al., ICML 2019). What is kept belongs to one rank of
one world size, so a checkpoint, which forgets how it was trained, does not hold it: a resumed run begins with
nothing left over, as the first step did. So do the factors of PowerSGD.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lockstep.collectives.schedule import Schedule
from lockstep.transports.base import Pending, Transport


@dataclass(frozen=True)
class Part:
    """One rank's gradients of one bucket, and where their sum goes.

    ``flat`` is (elements + parameters,): the gradients side by side, then a 1 for each parameter that had one on
    this rank, else a 0 (and zeros for its gradient). ``shapes`` are those in memory: the dimension that varies slowest
    comes first, also where a weight is transposed. ``schedule`` is the bucket's all-reduce.
    """

    number: int
    flat: Tensor
    shapes: Sequence[torch.Size]
    schedule: Schedule

    @property
    def gradients(self) -> Tensor:
        """(elements,): a view."""
        return self.flat[: self.flat.numel() - len(self.shapes)]

    @property
    def marks(self) -> Tensor:
        """(parameters,): a view; by how many ranks each parameter was used, once it is reduced."""
        return self.flat[self.flat.numel() - len(self.shapes) :]

    def spans(self) -> list[slice]:
        """Where each parameter's gradient lies."""
        spans, start = [], 0
        for shape in self.shapes:
            spans.append(slice(start, start + shape.numel()))
            start += shape.numel()
        return spans

    def absent(self) -> list[slice]:
        """The gradients that this rank did not have."""
        marks = self.marks.tolist()
        return (
            [] if all(marks) else [span for span, mark in zip(self.spans(), marks, strict=True) if not mark]
        )


class Compressor:
    """One rank's side of a compressor, for all buckets. Subclasses say what is sent.

    Two promises hold for each: every rank ends with the same bits, and a NaN or an infinity in one rank's gradient
    leaves the sum not finite, so that the training loop stops. ``direct`` ones send messages of their own from
    every rank to every other; the rest use the bucket's schedule.
    """

    direct = True

    def __init__(self, *, error_feedback: bool = False) -> None:
        self.residuals = Residuals(error_feedback)

    def begin(self, scale: float) -> None:
        """A step begins, whose gradients are ``scale`` times what they are: the loss is scaled in fp16."""
        self.residuals.begin(scale)

    def undo(self) -> None:
        """The step was left out, because its gradients overflowed: nothing of it is remembered."""
        self.residuals.undo()

    def reduce(self, part: Part, transport: Transport) -> None:
        """Replace ``part.flat`` by its sum over the ranks; the marks exactly, the gradients about."""
        raise NotImplementedError


class Residuals:
    """What was left out of each bucket so far. Empty for ever where ``kept`` is False."""

    def __init__(self, kept: bool) -> None:
        self._kept = kept
        self._left: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}  # the same when the step began, where it may yet be left out
        self._scale = 1.0

    def begin(self, scale: float) -> None:
        """What is left over counts in the gradients' present scale, by which powers of two change no bit."""
        if scale != self._scale:
            self._left = {number: left * (scale / self._scale) for number, left in self._left.items()}
            self._scale = scale
        self._before = dict(self._left) if scale != 1 else {}

    def undo(self) -> None:
        """Forget what this step left over."""
        self._left = self._before

    def of(self, number: int) -> Tensor | None:
        """What stands over for a bucket: (elements,), or None."""
        return self._left.get(number)

    def added_to(self, part: Part) -> Tensor:
        """(elements,) in at least fp32: the gradients, and what was left out of them before.

        A parameter without a gradient on this rank gets nothing: if no rank has one, what is sent is dropped.
        """
        total = part.gradients.to(working(part.flat.dtype), copy=True)
        left = self._left.get(part.number)
        if left is not None:
            total += left
            for span in part.absent():
                total[span] = 0
        return total

    def keep(self, part: Part, left: Tensor) -> None:
        """Remember what was left out of ``added_to``; before the sum is written into the part."""
        if not self._kept:
            return
        before = self._left.get(part.number)
        if before is not None:
            for span in part.absent():
                left[span] += before[span]
        self._left[part.number] = left


def working(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in: fp32, or fp64 for gradients of that type."""
    return torch.promote_types(dtype, torch.float32)


def as_bytes(*tensors: Tensor) -> Tensor:
    """(bytes,) uint8: a copy of the tensors' memory, one after the other. The largest type comes first."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def exchange(
    transport: Transport, operation: str, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]
) -> None:
    """Send ``outgoing[rank]`` to each other rank and fill ``incoming[rank]`` from it; empty ones do not travel."""
    transport.label = replace(transport.label, operation=operation)
    pending: list[Pending] = []
    for distance in range(1, transport.size):
        to, source = (
            (transport.rank + distance) % transport.size,
            (transport.rank - distance) % transport.size,
        )
        if outgoing[to].numel():
            pending.append(transport.send(outgoing[to], to))
        if incoming[source].numel():
            pending.append(transport.recv(incoming[source], source))
    for message in pending:
        message.wait()
