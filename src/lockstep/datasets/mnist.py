"""Handwritten digits, 28 x 28, from the four idx files of MNIST; Fashion-MNIST and the like have the same format.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE (1998).
"""

import math
import struct
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lockstep.datasets import Source
from lockstep.datasets._files import digest_of_files, locate, missing, read_limited
from lockstep.errors import UsageError

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SUBFOLDERS = (".", "MNIST/raw", "FashionMNIST/raw", "raw")  # as torchvision leaves them
UNSIGNED_BYTE = 8  # idx's code for the type of its numbers
LARGEST = 2**32  # bytes of a file, decompressed


def mnist(
    seed: int,  # noqa: ARG001 - the files' own order
    test_fraction: float,  # noqa: ARG001 - the files have a test split of their own
    *,
    folder: str = "data/mnist",
    mean: Annotated[list[float], Field(min_length=1, max_length=1)] = [0.1307],  # noqa: B006 - read only
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=1)] = [0.3081],  # noqa: B006
) -> Source:
    """Bytes of (samples, 1, 28, 28), and the test split that the files bring."""
    images, labels, test_images, test_labels = (read_idx(path) for path in files(folder))
    if images.ndim != 3 or test_images.ndim != 3 or labels.ndim != 1 or test_labels.ndim != 1:
        raise UsageError(f"the idx files in {folder} have other dimensions than images and labels have")
    many = int(max(labels.max(initial=9), test_labels.max(initial=9))) + 1
    return Source(
        images[:, None],
        labels.astype(np.int64),
        [str(number) for number in range(many)],
        test_images[:, None],
        test_labels.astype(np.int64),
        mean=mean,
        std=std,
    )


def require(*, folder: str, **_: Any) -> None:
    """Raise UsageError where the files are not there."""
    files(folder)


def state(*, folder: str, **_: Any) -> str:
    """A digest of the four files."""
    return digest_of_files(files(folder))


def files(folder: str) -> list[Path]:
    """The four files, compressed or not, under the names in use; UsageError names those that are not there."""
    place = Path(folder).expanduser()
    for each in SUBFOLDERS:
        found = [locate(place / each, spellings(name)) for name in NAMES]
        if all(found):
            return [path for path in found if path]
    absent = [f"{name}.gz" for name in NAMES if locate(place, spellings(name)) is None]
    source = "They are the four files of the MNIST database, compressed (.gz) or not."
    raise missing("data.name: mnist", place, absent, source, "data.folder")


def spellings(name: str) -> list[str]:
    """train-images-idx3-ubyte is also kept as train-images.idx3-ubyte, each with or without .gz."""
    dotted = name.replace("-idx", ".idx")
    return [name, f"{name}.gz", dotted, f"{dotted}.gz"]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type, the number of dimensions, each of them big-endian, the numbers."""
    content = read_limited(path, LARGEST)
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if content[:3] != bytes([0, 0, UNSIGNED_BYTE]) or not dimensions or len(content) < start:
        raise UsageError(
            f"{path} is not an idx file of bytes: it begins with {content[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UsageError(
            f"{path} should hold {'x'.join(map(str, shape))} bytes after its head, and holds {len(content) - start:,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
