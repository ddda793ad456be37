"""Compressors between threads and without a model: what the tests of them share."""

import math

import torch

from lockstep import plugins
from lockstep.collectives.schedule import make
from lockstep.compressors.base import Part
from transport_ranks import in_threads, opened

NAMES = plugins.names("compressors")
CLASSES = {name: plugins.load("compressors", name) for name in NAMES}
WITH_FEEDBACK = [name for name in NAMES if "error_feedback" in plugins.schema("compressors", name)]
SHAPES = ((17, 12), (12,), (5, 3, 2, 2), (), (40, 31), (0,))  # 1,517 elements: matrices, vectors, one, none


def gradients(rank, step, shapes=SHAPES, dtype=torch.float32, whole=False):
    """What a rank has to give: the same whoever computes it. ``whole`` numbers add up without rounding."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    elements = sum(math.prod(shape) for shape in shapes)
    if whole:
        return torch.randint(-99, 100, (elements,), generator=generator).to(dtype)
    return torch.randn(elements, generator=generator, dtype=torch.float64).to(dtype)


def part(values, shapes=SHAPES, marks=None, rank=0, ranks=1):
    """A bucket of these gradients."""
    used = torch.ones(len(shapes)) if marks is None else torch.tensor(marks)
    flat = torch.cat([values, used.to(values.dtype)])
    return Part(0, flat, [torch.Size(shape) for shape in shapes], make("all_reduce", "direct", rank, ranks))


def reduced(folder, name, ranks, steps, options=None, marks=None, transport="queue", **kind):
    """Each rank's results of some steps, its residual, and the bytes it sent in one step."""
    shapes = kind.get("shapes", SHAPES)

    def work(rank):
        ours = opened(transport, rank, ranks, folder)
        compressor = CLASSES[name](**(options or {}))
        found = []
        for step in range(steps):
            before = ours.wire_bytes
            bucket = part(gradients(rank, step, **kind), shapes, marks and marks(rank, step), rank, ranks)
            for span in bucket.absent():
                bucket.flat[span] = 0
            compressor.reduce(bucket, ours)
            found.append(bucket.flat)
        sent = ours.wire_bytes - before
        ours.close()
        return found, compressor.residuals.of(0), sent

    results = in_threads(ranks, work)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
