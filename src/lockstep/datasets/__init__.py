"""Datasets: one file each. The function named like the file returns a Source; its keyword-only arguments
are the options that parameters.yaml may give. Only `prepare_data` calls them: the ranks map what it wrote."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Source:
    """Samples and their labels.

    ``features`` is (samples, *shape) in float32, ``labels`` (samples,) in int64, 0 to classes - 1. Where the
    dataset comes with a test split of its own, it stands in ``test_features`` and ``test_labels``; else the
    fraction that the parameters ask for is taken from the samples.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: list[str]
    test_features: NDArray[np.float32] | None = field(default=None)
    test_labels: NDArray[np.int64] | None = field(default=None)
