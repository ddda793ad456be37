"""Checkpoints of two runs: the SHA-256 that their manifests tell, and tensor by tensor how far they are apart.

Whichever ranks wrote them: a part may stand in one file or in slices, and the slices of one be cut otherwise than
those of the other. Where the files are not the same, the tensors that they make up are compared.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.catalog.export import plain_weights
from lockstep.catalog.export.plain_weights import Whole
from lockstep.catalog.manifest import parse_manifest
from lockstep.catalog.run import Run
from lockstep.catalog.verification.safetensors_file import BITS
from lockstep.errors import CorruptRecord
from lockstep.files import open_plain, read_plain

PARTS = {"model.safetensors": "weights", "optimizer.safetensors": "optimizer's state"}
LARGEST_MANIFEST_BYTES = 16 << 20
CHUNK_ELEMENTS = 1 << 20
_FOLDER = re.compile(r"step-(\d{8,15})")
_FILE = re.compile(r"(model|optimizer)(-\d{5}-of-\d{5})?(\.safetensors)")
_FLOATS = {"F64": ("f8", "i8"), "F32": ("f4", "i4"), "F16": ("f2", "i2")}
Read = Callable[[int, int], bytes]  # from a byte of a tensor on, so many


@dataclass(frozen=True)
class Apart:
    """How far two tensors of one name are apart. ``relative`` is to the larger of their largest elements.

    ``unlike`` says why their elements cannot be held against each other.
    """

    name: str
    elements: int
    differing: int
    largest: float
    relative: float
    ulps: int | None
    unlike: str | None = None

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
            same = tuple(
                part for part in both if _same(left[step], right[step], part, one[part], other[part])
            )
            rest = tuple(part for part in both if part not in same)
            pairs.append(Pair(step, left[step], right[step], same, rest))
    return pairs


def _same(a: Path, b: Path, part: str, one: dict[str, str], other: dict[str, str]) -> bool:
    """By the digests of the files; where they are cut into other slices, by the tensors."""
    if one == other:
        return True
    if one.keys() == other.keys() == {part}:
        return False
    try:
        return not _apart(a, b, part)
    except (OSError, ValueError, CorruptRecord):
        return False


def _checkpoints(run: Run) -> dict[int, Path]:
    try:
        entries = [] if run.checkpoints.is_symlink() else list(run.checkpoints.iterdir())
    except OSError:
        return {}
    named = ((_FOLDER.fullmatch(path.name), path) for path in entries if not path.is_symlink())
    return {int(match[1]): path for match, path in named if match}


def _digests(folder: Path) -> dict[str, dict[str, str]]:
    """By part: the digest of each of its files."""
    try:
        manifest = parse_manifest(read_plain(folder / "manifest.json", LARGEST_MANIFEST_BYTES, 3))
    except OSError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for name, entry in manifest["files"].items() if manifest else ():
        if match := _FILE.fullmatch(name):
            found.setdefault(match[1] + match[3], {})[name] = entry["sha256"]
    return found


def apart(a: Path, b: Path, part: str) -> list[Apart]:
    """Every tensor that differs between two checkpoints, in the order of the first; none where one cannot be read."""
    try:
        return _apart(a, b, part)
    except (OSError, ValueError, CorruptRecord):
        return []


def _apart(a: Path, b: Path, part: str) -> list[Apart]:
    left, right = (plain_weights.read(folder, part.partition(".")[0]) for folder in (a, b))
    found = []
    for name, tensor in left.items():
        if name not in right:
            found.append(_unlike(name, "in A alone"))
        elif difference := _compare(name, tensor, right[name]):
            found.append(difference)
    return found + [_unlike(name, "in B alone") for name in right if name not in left]


def _unlike(name: str, why: str) -> Apart:
    return Apart(name, 0, 0, math.inf, math.inf, None, why)


@contextlib.contextmanager
def _opened(whole: Whole) -> Iterator[Read]:
    """A tensor's bytes: from its file, or put together in memory where it is in slices."""
    first = whole.pieces[0]
    if len(whole.pieces) == 1:
        with open_plain(first.file, 3) as file:

            def from_file(start: int, length: int) -> bytes:
                file.seek(first.start + start)
                content = file.read(length)
                if len(content) < length:
                    raise ValueError("it ends early")
                return content

            yield from_file
        return
    content = plain_weights.put_together(whole)
    yield lambda start, length: content[start : start + length]


def _compare(name: str, a: Whole, b: Whole) -> Apart | None:
    """None where the bytes are the same."""
    if a.dtype != b.dtype and a.shape == b.shape and {a.dtype, b.dtype} <= _FLOATS.keys():
        with _opened(a) as one_read, _opened(b) as other_read:
            return _compare_values(name, a, b, one_read, other_read)
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        shapes = ("x".join(map(str, each.shape)) or "a number" for each in (a, b))
        one, other = (f"{each.dtype} ({shape})" for each, shape in zip((a, b), shapes, strict=True))
        return _unlike(name, f"{one} in A, {other} in B")
    if not a.bytes:
        return None
    with _opened(a) as one_read, _opened(b) as other_read:
        if a.dtype not in _FLOATS:
            return _compare_bytes(name, a, one_read, other_read)
        return _compare_floats(name, a, one_read, other_read)


def _compare_floats(name: str, tensor: Whole, one: Read, other: Read) -> Apart | None:
    import numpy as np

    kind, whole = _FLOATS[tensor.dtype]
    width = int(kind[1])
    differing, largest, scale, most_ulps = 0, 0.0, 0.0, 0
    lowest = np.iinfo(whole).min
    for start in range(0, tensor.bytes, CHUNK_ELEMENTS * width):
        length = min(CHUNK_ELEMENTS * width, tensor.bytes - start)
        left, right = one(start, length), other(start, length)
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
    return Apart(
        name, tensor.bytes // width, differing, largest, largest / scale if scale else 0.0, most_ulps
    )


def _compare_values(name: str, a: Whole, b: Whole, one: Read, other: Read) -> Apart | None:
    """Floats of two types, by their values: there are no bits to count in. None where all values are the same."""
    import numpy as np

    elements = math.prod(a.shape)
    kinds = [_FLOATS[each.dtype][0] for each in (a, b)]
    differing, largest, scale = 0, 0.0, 0.0
    for start in range(0, elements, CHUNK_ELEMENTS):
        count = min(CHUNK_ELEMENTS, elements - start)
        x, y = (
            np.frombuffer(read(start * int(kind[1]), count * int(kind[1])), f"<{kind}").astype("f8")
            for read, kind in zip((one, other), kinds, strict=True)
        )
        with np.errstate(all="ignore"):
            scale = max(scale, float(np.nanmax(np.abs(x), initial=0)), float(np.nanmax(np.abs(y), initial=0)))
            unequal = (x != y) & ~(np.isnan(x) & np.isnan(y))
            gap = np.abs(x - y)[unequal]
            differing += int(unequal.sum())
            largest = max(largest, float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0)))
    return (
        Apart(name, elements, differing, largest, largest / scale if scale else 0.0, None)
        if differing
        else None
    )


def _compare_bytes(name: str, tensor: Whole, one: Read, other: Read) -> Apart | None:
    """For types that are compared by their bytes only: how many elements differ."""
    width, differing = BITS[tensor.dtype] // 8, 0
    for start in range(0, tensor.bytes, CHUNK_ELEMENTS * width):
        length = min(CHUNK_ELEMENTS * width, tensor.bytes - start)
        left, right = one(start, length), other(start, length)
        if left != right:
            pieces = range(0, length, width)
            differing += sum(left[at : at + width] != right[at : at + width] for at in pieces)
    return Apart(name, math.prod(tensor.shape), differing, math.inf, math.inf, None) if differing else None
