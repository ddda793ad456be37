"""Data of any size, for measuring: Gaussian inputs labelled by a hidden teacher, so that it can be learnt."""

from typing import Annotated

import numpy as np
from pydantic import Field

from lockstep.datasets import Source

TEACHER, TRAIN, TEST = range(3)  # one stream of random numbers each: more samples change no other stream


def synthetic(
    seed: int,
    test_fraction: float,
    *,
    num_samples: Annotated[int, Field(ge=2, le=1_000_000_000)] = 10_000,
    input_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64,
    num_classes: Annotated[int, Field(ge=2, le=1_000_000)] = 10,
) -> Source:
    """``num_samples`` rows of ``input_size`` standard normal numbers, the test split among them.

    A label is the largest of ``num_classes`` linear scores of a teacher drawn from the seed. The test split
    is drawn from a stream of its own, so it is not a part of the training samples.
    """
    teacher = _stream(seed, TEACHER).standard_normal((input_size, num_classes), dtype=np.float32)
    test_count = min(max(round(num_samples * test_fraction), 1), num_samples - 1)
    train, test = (
        _stream(seed, stream).standard_normal((count, input_size), dtype=np.float32)
        for stream, count in ((TRAIN, num_samples - test_count), (TEST, test_count))
    )
    return Source(
        train,
        (train @ teacher).argmax(axis=1).astype(np.int64),
        [str(index) for index in range(num_classes)],
        test,
        (test @ teacher).argmax(axis=1).astype(np.int64),
    )


def _stream(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
