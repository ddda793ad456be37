"""Real handwritten digits: 1,797 scans of 8 x 8 pixels, shipped with scikit-learn.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.datasets import Source
from lockstep.errors import MissingPackage

LARGEST_PIXEL = 16.0


def digits(seed: int, test_fraction: float) -> Source:  # noqa: ARG001 - the split is the caller's
    """Pixels scaled to 0..1, as (samples, 8, 8)."""
    table = _table()
    features = (table[:, :-1] / LARGEST_PIXEL).astype(np.float32).reshape(-1, 8, 8)
    return Source(features, table[:, -1].astype(np.int64), [str(digit) for digit in range(10)])


def require(**_: Any) -> None:
    """Raise MissingPackage where scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise MissingPackage("scikit-learn", "digits", "data.name: digits")


def _table() -> NDArray[np.float64]:
    """(1797, 65): 64 pixels and the digit.

    scikit-learn's own file is read where it lies, because importing the package to have it read costs 2 s;
    where a version keeps it elsewhere, its loader is asked.
    """
    require()
    found = find_spec("sklearn")
    for folder in (found.submodule_search_locations or []) if found else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.float64)
