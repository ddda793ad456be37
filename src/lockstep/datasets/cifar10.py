"""60,000 photographs of 32 x 32 pixels in ten classes, from the files of CIFAR-10's binary or Python version.

Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lockstep.datasets import Source
from lockstep.datasets._cifar_python import read_batch
from lockstep.datasets._files import digest_of_files, locate, missing
from lockstep.errors import UsageError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
SUBFOLDERS = (".", "cifar-10-batches-bin", "cifar-10-batches-py")  # as the archives unpack
PIXELS = 3 * 32 * 32


def cifar10(
    seed: int,  # noqa: ARG001 - the files' own order
    test_fraction: float,  # noqa: ARG001 - the files have a test split of their own
    *,
    folder: str = "data/cifar10",
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.4914, 0.4822, 0.4465],  # noqa: B006
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = [  # noqa: B006
        0.2470,
        0.2435,
        0.2616,
    ],
) -> Source:
    """Bytes of (samples, 3, 32, 32), and the test split that the files bring."""
    *training, test = (read(path) for path in files(folder))
    images, labels = (np.concatenate(parts) for parts in zip(*training, strict=True))
    return Source(images, labels, CLASSES, test[0], test[1], mean=mean, std=std)


def require(*, folder: str, **_: Any) -> None:
    """Raise UsageError where the files are not there."""
    files(folder)


def state(*, folder: str, **_: Any) -> str:
    """A digest of the six files."""
    return digest_of_files(files(folder))


def files(folder: str) -> list[Path]:
    """The six files of one version; UsageError names those that are not there."""
    place = Path(folder).expanduser()
    for each in SUBFOLDERS:
        for ending in (".bin", ""):
            found = [locate(place / each, [f"{part}{ending}"]) for part in PARTS]
            if all(found):
                return [path for path in found if path]
    absent = [f"{part}.bin" for part in PARTS if locate(place, [f"{part}.bin", part]) is None]
    source = (
        "They come in cifar-10-binary.tar.gz; the Python version's files (without .bin) are read as well."
    )
    raise missing("data.name: cifar10", place, absent, source, "data.folder")


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (samples, 3, 32, 32) and labels of one file of either version."""
    if path.suffix == ".bin":
        images, labels = _read_binary(path)
    else:
        images, labels = read_batch(path, PIXELS)
    if not len(labels) or labels.max() >= len(CLASSES):
        raise UsageError(f"{path} is not a batch of CIFAR-10: its labels are not 0 to {len(CLASSES) - 1}")
    return images.reshape(-1, 3, 32, 32), labels


def _read_binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Records of a label and 3,072 pixels: red, green and blue planes, row by row."""
    content = np.fromfile(path, np.uint8)
    if len(content) % (1 + PIXELS):
        raise UsageError(
            f"{path} has {len(content):,} bytes, allowed: a multiple of {1 + PIXELS:,} (a label and a picture each); "
            "it may be cut short"
        )
    records = content.reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].astype(np.int64)
