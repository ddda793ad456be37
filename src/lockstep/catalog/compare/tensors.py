"""Checkpoints of two runs: the SHA-256 that their manifests tell, and tensor by tensor how far they are apart."""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lockstep.catalog.manifest import parse_manifest
from lockstep.catalog.run import Run
from lockstep.files import open_plain, read_plain

PARTS = {"model.safetensors": "weights", "optimizer.safetensors": "optimizer's state"}
LARGEST_HEADER_BYTES = 64 << 20
LARGEST_MANIFEST_BYTES = 16 << 20
CHUNK_ELEMENTS = 1 << 20
_FOLDER = re.compile(r"step-(\d{8,15})")
_FLOATS = {"F64": ("f8", "i8"), "F32": ("f4", "i4"), "F16": ("f2", "i2")}


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Apart:
    """How far two tensors of one name are apart. ``relative`` is to the larger of their largest elements."""

    name: str
    elements: int
    differing: int
    largest: float
    relative: float
    ulps: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Pair:
    """Checkpoints that two runs have of one step: which of their parts differ."""

    step: int
    a: Path
    b: Path
    same: tuple[str, ...]
    other: tuple[str, ...]


def common(a: Run, b: Run) -> list[Pair]:
    """Checkpoints of the same step in both, oldest first, compared by the SHA-256 in their manifests."""
    left, right = _checkpoints(a), _checkpoints(b)
    pairs = []
    for step in sorted(left.keys() & right.keys()):
        one, other = _digests(left[step]), _digests(right[step])
        both = [part for part in PARTS if part in one and part in other]
        if both:
            same = tuple(part for part in both if one[part] == other[part])
            pairs.append(
                Pair(step, left[step], right[step], same, tuple(part for part in both if part not in same))
            )
    return pairs


def _checkpoints(run: Run) -> dict[int, Path]:
    try:
        entries = [] if run.checkpoints.is_symlink() else list(run.checkpoints.iterdir())
    except OSError:
        return {}
    named = ((_FOLDER.fullmatch(path.name), path) for path in entries if not path.is_symlink())
    return {int(match[1]): path for match, path in named if match}


def _digests(folder: Path) -> dict[str, str]:
    try:
        manifest = parse_manifest(read_plain(folder / "manifest.json", LARGEST_MANIFEST_BYTES, 3))
    except OSError:
        return {}
    return {name: entry["sha256"] for name, entry in manifest["files"].items()} if manifest else {}


def apart(a: Path, b: Path, part: str) -> list[Apart]:
    """Every tensor that differs between two checkpoints' files, in the order of the first."""
    try:
        with open_plain(a / part, 3) as one, open_plain(b / part, 3) as other:
            left, right = header(one), header(other)
            found = []
            for name, tensor in left.items():
                if name in right and (difference := _compare(name, one, tensor, other, right[name])):
                    found.append(difference)
            lonely = [name for name in left if name not in right] + [
                name for name in right if name not in left
            ]
            return found + [Apart(name, 0, 0, math.inf, math.inf, None) for name in lonely]
    except (OSError, ValueError):
        return []


def header(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order of their bytes. ValueError where it is none."""
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("too short")
    (length,) = struct.unpack("<Q", start)
    if length > LARGEST_HEADER_BYTES:
        raise ValueError("its header is too large")
    try:
        value = json.loads(file.read(length))
        found = {
            name: Tensor(
                str(each["dtype"]),
                tuple(each["shape"]),
                *(8 + length + int(at) for at in each["data_offsets"]),
            )
            for name, each in value.items()
            if name != "__metadata__"
        }
    except (RecursionError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("its header is no safetensors header") from error
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def _compare(name: str, one: BinaryIO, a: Tensor, other: BinaryIO, b: Tensor) -> Apart | None:
    """None where the bytes are the same."""
    size = a.stop - a.start
    if (a.dtype, a.shape, size) != (b.dtype, b.shape, b.stop - b.start):
        return Apart(name, 0, 0, math.inf, math.inf, None)
    if a.dtype not in _FLOATS:
        return _compare_bytes(name, one, a, other, b)
    import numpy as np

    kind, whole = _FLOATS[a.dtype]
    width = int(kind[1])
    differing, largest, scale, most_ulps = 0, 0.0, 0.0, 0
    lowest = np.iinfo(whole).min
    for start in range(0, size, CHUNK_ELEMENTS * width):
        length = min(CHUNK_ELEMENTS * width, size - start)
        left, right = _read(one, a.start + start, length), _read(other, b.start + start, length)
        x, y = np.frombuffer(left, f"<{kind}"), np.frombuffer(right, f"<{kind}")
        with np.errstate(all="ignore"):
            scale = max(scale, float(np.nanmax(np.abs(x), initial=0)), float(np.nanmax(np.abs(y), initial=0)))
            if left == right:
                continue
            i, j = np.frombuffer(left, f"<{whole}"), np.frombuffer(right, f"<{whole}")
            differing += int((i != j).sum())
            gap = np.abs(x.astype("f8") - y.astype("f8"))
            largest = max(largest, float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0)))
            # Bits as whole numbers in the order of the values: negative ones run backwards.
            i, j = np.where(i < 0, lowest - i, i), np.where(j < 0, lowest - j, j)
            unsigned = f"u{whole[1]}"  # in which a difference of opposite ends does not overflow
            most_ulps = max(
                most_ulps, int(np.max((np.maximum(i, j) - np.minimum(i, j)).view(unsigned), initial=0))
            )
    if not differing:
        return None
    return Apart(name, size // width, differing, largest, largest / scale if scale else 0.0, most_ulps)


def _compare_bytes(name: str, one: BinaryIO, a: Tensor, other: BinaryIO, b: Tensor) -> Apart | None:
    """For types that are compared by their bytes only."""
    differing, step = 0, 1 << 22
    for start in range(0, a.stop - a.start, step):
        length = min(step, a.stop - a.start - start)
        differing += _read(one, a.start + start, length) != _read(other, b.start + start, length)
    return Apart(name, math.prod(a.shape), differing, math.inf, math.inf, None) if differing else None


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    content = file.read(length)
    if len(content) < length:
        raise ValueError("it ends early")
    return content
