"""Gradients that travel together, and the thread that sends them while the backward pass goes on."""

import queue
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lockstep.collectives import execute
from lockstep.collectives.schedule import Schedule
from lockstep.compressors.base import Compressor, Part
from lockstep.strategies._layout import is_dense, shape_in_memory
from lockstep.transports.base import Label, Transport


@dataclass
class Bucket:
    """Parameters of one type, and their gradients side by side in ``flat``, in the host's memory.

    ``flat`` is (elements + parameters,): behind the gradients stands a one for each parameter that had a
    gradient. Summed over the ranks, it tells a parameter that nobody used, which must keep no gradient (a zero
    would still be decayed and would start its optimizer state), from one that only this rank did not use.
    """

    number: int
    parameters: list[nn.Parameter]
    flat: Tensor
    views: list[Tensor]
    schedule: Schedule | None = None
    ready: set[int] = field(default_factory=set)

    @property
    def used(self) -> Tensor:
        """The counts behind the gradients."""
        return self.flat[self.flat.numel() - len(self.parameters) :]

    @property
    def is_full(self) -> bool:
        """Whether every parameter's gradient is in."""
        return len(self.ready) == len(self.parameters)

    def take(self, place: int) -> None:
        """Copy a gradient in, or add what came later to it, and let go of its own memory."""
        parameter = self.parameters[place]
        assert parameter.grad is not None
        if place in self.ready:
            self.views[place].add_(parameter.grad.to(self.flat.device))
        else:
            self.views[place].copy_(parameter.grad)
        parameter.grad = None
        self.ready.add(place)

    def complete(self) -> None:
        """Zeros for the parameters that had no gradient, and the marks of those that had."""
        used = self.used
        if self.is_full:
            used.fill_(1)
            return
        for place, view in enumerate(self.views):
            if place not in self.ready:
                view.zero_()
                used[place] = 0
            else:
                used[place] = 1

    def give_back(self) -> None:
        """Each parameter's gradient is its part of the bucket, unless no rank had one."""
        counts = self.used.tolist()
        for parameter, view, count in zip(self.parameters, self.views, counts, strict=True):
            # Memory shared with the bucket, or a copy for a GPU.
            parameter.grad = view.to(parameter.device) if count else None
        self.ready.clear()


def cut(parameters: list[nn.Parameter], bucket_bytes: int) -> list[Bucket]:
    """Buckets of at most ``bucket_bytes`` (or one parameter), in the given order, one type each."""
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not groups or size + parameter.nbytes > bucket_bytes or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return [_bucket(number, group) for number, group in enumerate(groups)]


def _bucket(number: int, parameters: list[nn.Parameter]) -> Bucket:
    elements = sum(parameter.numel() for parameter in parameters)
    on_gpu = parameters[0].is_cuda  # which copies from and to pinned memory twice as fast
    flat = torch.zeros(elements + len(parameters), dtype=parameters[0].dtype, pin_memory=on_gpu)
    views, start = [], 0
    for parameter in parameters:
        views.append(laid_out(flat[start : start + parameter.numel()], parameter))
        start += parameter.numel()
    return Bucket(number, parameters, flat, views)


def laid_out(flat: Tensor, parameter: Tensor) -> Tensor:
    """A parameter's part of a bucket as a gradient for it: of its shape, and in its order in memory.

    Fused optimizers go through the memory of weights and gradients side by side, whatever their strides say, so a
    transposed or channels-last weight needs a gradient that is laid out as it is.
    """
    assert is_dense(parameter), "weights are given memory without gaps as the model is made"
    return flat.as_strided(parameter.shape, parameter.stride())


class Reducer:
    """Reduces buckets strictly by number, so that all ranks meet in the same collective.

    Full buckets go to a thread while the backward pass goes on; whatever is left at its end is reduced by the
    caller. An error in the thread is raised by ``finish``.
    """

    def __init__(
        self,
        buckets: list[Bucket],
        transport: Transport,
        threaded: bool,
        compressor: Compressor | None = None,
    ) -> None:
        self._buckets, self._transport, self._compressor = buckets, transport, compressor
        self._next = 0
        self._step = 0
        self._queue: queue.SimpleQueue[Bucket | None] = queue.SimpleQueue()
        self._given = 0
        self._done = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if threaded and len(buckets) > 1:
            self._thread = threading.Thread(target=self._work, name="reducer", daemon=True)
            self._thread.start()

    def on_full(self) -> None:
        """A bucket is full: hand on it and its successors, in order, but never the last one."""
        if self._thread is None:
            return
        while self._next < len(self._buckets) - 1 and self._buckets[self._next].is_full:
            self._queue.put(self._buckets[self._next])
            self._next += 1
            self._given += 1

    def has(self, bucket: Bucket) -> bool:
        """Whether a bucket was handed on already, so that nothing can be added to it."""
        return bucket.number < self._next

    def begin(self, step: int) -> None:
        """What is reduced from now on belongs to this update, counted from 1: the transport's messages say so."""
        self._step = step

    def finish(self) -> None:
        """Return when every bucket of the step is reduced."""
        for _ in range(self._given):
            self._done.acquire()
        if self._error is not None:
            raise self._error
        for bucket in self._buckets[self._next :]:
            self._reduce(bucket)
        self._next = self._given = 0

    def _reduce(self, bucket: Bucket) -> None:
        assert bucket.schedule is not None
        bucket.complete()
        self._transport.label = Label("all_reduce", bucket.number, self._step)
        if self._compressor is None:
            execute.run(bucket.schedule, self._transport, bucket.flat)
            return
        shapes = [shape_in_memory(view) for view in bucket.views]
        self._compressor.reduce(Part(bucket.number, bucket.flat, shapes, bucket.schedule), self._transport)

    def _work(self) -> None:
        while (bucket := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._reduce(bucket)
            except BaseException as error:
                self._error = error
            self._done.release()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
