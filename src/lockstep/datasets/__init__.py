"""Datasets: one file each. The function named like the file returns a Source, Tokens or Pictures; its
keyword-only arguments are the options that parameters.yaml may give. Only `prepare_data` calls them: the ranks map
what it wrote. A dataset that reads files has two more functions with the same options: ``require`` raises a
UsageError that says which files to put where, and ``state`` is a digest of what stands in them now."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Source:
    """Samples and their labels.

    ``features`` is (samples, *shape): float32 as the model takes it; uint8 pixels, which reach the model as 0..1,
    less ``mean`` and divided by ``std`` per channel; or int64 indices. ``labels`` is (samples,), or (samples,
    length) for one prediction a place, in int64, 0 to classes - 1. Where the dataset comes with a validation or
    a test split of its own, it stands in the further fields; else the fraction that the parameters ask for is
    taken from the samples.
    """

    features: NDArray[Any]
    labels: NDArray[np.int64]
    classes: list[str]
    test_features: NDArray[Any] | None = field(default=None)
    test_labels: NDArray[np.int64] | None = field(default=None)
    validation_features: NDArray[Any] | None = field(default=None)
    validation_labels: NDArray[np.int64] | None = field(default=None)
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class Tokens:
    """One long sequence of tokens to be continued: uint8 or int32 numbers, 0 to classes - 1.

    A sample is ``context_length`` tokens, and its labels are the tokens that follow each of them. The splits are
    contiguous regions, in the order train, validation, test. ``token`` says what one is, in a word.
    """

    tokens: NDArray[Any]
    classes: list[str]
    context_length: int
    token: str


@dataclass(frozen=True)
class Pictures:
    """Files of images, which the ranks have decoded as they need them.

    ``paths`` are relative to ``folder``, ``digests`` is (samples, 32), the SHA-256 of each file, and ``labels``
    (samples,). ``parts`` gives the rows of splits that the folder itself tells apart; where it names none, all
    rows are to be split.
    """

    folder: Path
    paths: list[str]
    digests: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: list[str]
    parts: dict[str, NDArray[np.intp]]
    image_size: int
    resize: int
    mean: list[float]
    std: list[float]
    workers: int
