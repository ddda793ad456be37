"""Photographs in ImageNet's layout: a folder for each class, below train/ and val/ (and test/) or by themselves.

Nothing is decoded here: the list of files, each with its digest, is what is prepared, and every rank has its share
of each batch decoded by processes of its own as it needs it.
"""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from lockstep import plugins
from lockstep.datasets import Pictures
from lockstep.datasets._files import missing
from lockstep.errors import UsageError
from lockstep.files import sha256_of

ENDINGS = (".jpg", ".jpeg", ".png")
NAMED = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def image_folder(
    seed: int,  # noqa: ARG001 - the split is the caller's
    test_fraction: float,  # noqa: ARG001 - the split is the caller's
    *,
    folder: str = "data/images",
    image_size: Annotated[int, Field(ge=1, le=8192)] = 224,
    resize: Annotated[int, Field(ge=1, le=8192)] = 256,
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.485, 0.456, 0.406],  # noqa: B006
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = [  # noqa: B006
        0.229,
        0.224,
        0.225,
    ],
    workers: Annotated[int, Field(ge=1, le=64)] = 2,
) -> Pictures:
    """Every image's shorter side is scaled to ``resize``, and the middle ``image_size`` x ``image_size`` is taken.

    ``data.augmentation.crop_scale`` takes a random part instead while training. ``workers`` processes decode for
    each rank.
    """
    if resize < image_size:
        raise UsageError(
            f"data.resize: found {resize}, allowed: data.image_size, which is {image_size}, or more"
        )
    place = Path(folder).expanduser().absolute()
    splits = listed(place)
    classes = sorted({file.parts[-2] for files in splits.values() for file in files})
    number = {name: index for index, name in enumerate(classes)}
    paths = [file for files in splits.values() for file in files]
    ends = np.cumsum([0, *(len(files) for files in splits.values())])
    parts = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(splits)}
    return Pictures(
        place,
        [file.as_posix() for file in paths],
        np.array([bytearray.fromhex(sha256_of(place / file)) for file in paths], np.uint8),
        np.array([number[file.parts[-2]] for file in paths], np.int64),
        classes,
        parts if len(parts) > 1 else {},
        image_size,
        resize,
        mean,
        std,
        workers,
    )


def require(*, folder: str, **_: Any) -> None:
    """Raise UsageError where the files, or what it takes to read them, are not there."""
    plugins.require("PIL.Image", "pillow", "vision", "data.name: image_folder")
    listed(Path(folder).expanduser().absolute())


def state(*, folder: str, **_: Any) -> str:
    """A digest of every file's path, size and time of change: reading them all again would take hours."""
    place = Path(folder).expanduser().absolute()
    digest = hashlib.sha256(os.fsencode(place))
    for files in listed(place).values():
        for file in files:
            found = (place / file).stat()
            digest.update(os.fsencode(file) + f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def listed(place: Path) -> dict[str, list[Path]]:
    """The images of each split that the folder tells apart (all under "train" where it tells none), by path."""
    below = {child.name: child for child in place.iterdir() if child.is_dir()} if place.is_dir() else {}
    named = {
        split: next((below[name] for name in names if name in below), None) for split, names in NAMED.items()
    }
    if named["train"] is None:
        named = {"train": place}
    elif named["test"] is None:  # ImageNet's own test images have no labels: its val is what is reported on
        named = {"train": named["train"], "test": named["validation"]}
    found = {split: _images(folder, place) for split, folder in named.items() if folder is not None}
    if not found["train"]:
        source = "A folder for each class belongs there, with .jpg and .png files (below train/ and val/, or directly)."
        raise missing(
            "data.name: image_folder", place, ["images in folders of classes"], source, "data.folder"
        )
    return {split: files for split, files in found.items() if files}


def _name(entry: os.DirEntry[str]) -> bytes:
    """The bytes of a name, whatever the locale reads them as: the order of UTF-8 is that of its characters."""
    return os.fsencode(entry.name)


def _images(folder: Path, place: Path) -> list[Path]:
    """Images one level below, in the folders of their classes, relative to ``place``."""
    files: list[Path] = []
    if not folder.is_dir():
        return files
    for kind in sorted(os.scandir(folder), key=_name):
        if kind.is_dir() and not kind.name.startswith("."):
            files += [
                Path(entry.path).relative_to(place)
                for entry in sorted(os.scandir(kind.path), key=_name)
                if entry.name.lower().endswith(ENDINGS) and entry.is_file() and not entry.name.startswith(".")
            ]
    return files
