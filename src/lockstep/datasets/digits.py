"""Real handwritten digits: 1,797 scans of 8 x 8 pixels, shipped with scikit-learn.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
"""

import numpy as np

from lockstep.datasets import Source
from lockstep.plugins import require

LARGEST_PIXEL = 16.0


def digits(seed: int, test_fraction: float) -> Source:  # noqa: ARG001 - the split is the caller's
    """Pixels scaled to 0..1, as (samples, 8, 8)."""
    datasets = require(
        "sklearn.datasets", package="scikit-learn", extra="digits", wanted_by="data.name: digits"
    )
    bunch = datasets.load_digits()
    features = (bunch.images / LARGEST_PIXEL).astype(np.float32)
    return Source(features, bunch.target.astype(np.int64), [str(digit) for digit in range(10)])
