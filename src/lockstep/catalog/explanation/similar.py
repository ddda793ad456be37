"""Of which run's file a file is a part, a longer copy, or a changed one."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lockstep.catalog.explanation.holders import Target, run_ids
from lockstep.catalog.manifest import LARGEST_BYTES, MANIFEST, walk
from lockstep.catalog.verification import safetensors_file
from lockstep.files import open_plain, read_plain

BLOCK = 4096  # bytes
SAMPLES = 32  # blocks that are compared before all of a file is
ALIKE = 0.5  # the share of blocks that must be equal for two files to count as one that was changed
MOST_COMPARED = 50_000  # of each kind, the nearest in size first
_ENTRY = re.compile(rb'"([^"\\]{1,500})": \{\s*"bytes": ([0-9]{1,15}),')


@dataclass(frozen=True)
class _Candidate:
    run_id: str
    name: str
    path: Path
    size: int


def most_similar(catalog: Path, target: Target) -> dict[str, Any] | None:
    """The run's file that the target was most likely made from, and how they differ; None where none is alike.

    Files of the same name are looked at first, then all of its kind.
    """
    every = [each for run_id in run_ids(catalog) for each in _candidates(catalog, run_id, target.path.suffix)]
    every.sort(key=lambda each: abs(each.size - target.size))
    named = [each for each in every if each.path.name == target.path.name]
    others = [each for each in every if each.path.name != target.path.name]
    for candidates in (named, others):
        if found := _best(target, candidates[:MOST_COMPARED]):
            return found
    return None


def _candidates(catalog: Path, run_id: str, suffix: str) -> Iterator[_Candidate]:
    """Every file of a kind that a run's seal lists, or that it has where it is not sealed."""
    folder = catalog / run_id
    try:
        content = read_plain(folder / MANIFEST, LARGEST_BYTES)
        # As text, which is enough for a comparison that reads the file itself, and much faster.
        sizes = {name.decode(): int(size) for name, size in _ENTRY.findall(content)}
    except FileNotFoundError:
        try:
            sizes = {name: found.st_size for name, found in walk(folder, {".live"})}
        except OSError:
            return
    except (OSError, ValueError):
        return
    for name, size in sizes.items():
        if name.endswith(suffix) and ".." not in name.split("/"):
            yield _Candidate(run_id, name, folder / name, size)


def _best(target: Target, candidates: list[_Candidate]) -> dict[str, Any] | None:
    with open_plain(target.path) as file:
        best: tuple[float, _Candidate] | None = None
        for each in candidates:
            share = _share(file, target.size, each)
            if share >= ALIKE and (best is None or share > best[0]):
                best = (share, each)
        if best is None:
            return None
        try:
            return _relation(file, target, best[1])
        except OSError:
            return None


def _share(file: BinaryIO, size: int, other: _Candidate) -> float:
    """The share of sampled blocks that are equal where both files have bytes; 0 where they cannot be compared."""
    common = min(size, other.size)
    block = min(BLOCK, max(1, common // SAMPLES))
    places = sorted({index * (common // block) // SAMPLES for index in range(SAMPLES)})
    if not common:
        return 0.0
    try:
        with open_plain(other.path, other.name.count("/") + 1) as second:
            equal = 0
            for count, place in enumerate(places):
                equal += _block(file, place, block) == _block(second, place, block)
                if count == 0 and not equal and size != other.size:
                    return 0.0  # one that was cut or added to begins like the whole
            return equal / len(places)
    except OSError:
        return 0.0


def _block(file: BinaryIO, place: int, block: int) -> bytes:
    return os.pread(file.fileno(), block, place * block)


def _relation(file: BinaryIO, target: Target, other: _Candidate) -> dict[str, Any] | None:
    with open_plain(other.path, other.name.count("/") + 1) as second:
        first, count = _differences(file, second, min(target.size, other.size))
    if count > min(target.size, other.size) * (1 - ALIKE):
        return None
    found: dict[str, Any] = {"run_id": other.run_id, "file": other.name, "bytes": other.size}
    how = "changed" if target.size == other.size else "cut" if target.size < other.size else "longer"
    found |= {"how": how, "different_bytes": count, "first_difference": first if count else None}
    if count and first is not None:
        found["tensor"] = _tensor(other.path, first)
    return found


def _differences(one: BinaryIO, other: BinaryIO, length: int) -> tuple[int | None, int]:
    """Where the first difference is, and how many bytes differ."""
    first, count, place = None, 0, 0
    one.seek(0)
    while place < length:
        size = min(1 << 20, length - place)
        left, right = one.read(size), other.read(size)
        if hashlib.sha256(left).digest() != hashlib.sha256(right).digest():
            places = [
                index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]
            ]
            if places:
                first = place + places[0] if first is None else first
                count += len(places)
        place += size
    return first, count


def _tensor(path: Path, place: int) -> str | None:
    """The tensor of a safetensors file that a byte belongs to."""
    try:
        header = safetensors_file.read_header(path, depth=2)
    except (OSError, safetensors_file.Broken):
        return None
    return next((name for name, each in header.items() if each.start <= place < each.stop), None)
