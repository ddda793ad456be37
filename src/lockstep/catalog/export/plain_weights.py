"""A checkpoint's weights as one plain .safetensors file, made of bytes: no torch, and no tensor in memory.

Whichever ranks wrote them: a piece of a tensor is copied from the file that it stands in to where it belongs in the
whole. Every digest of the checkpoint is checked before anything is read.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import strict_json
from lockstep.catalog.manifest import verify_folder
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run
from lockstep.catalog.verification import safetensors_file
from lockstep.errors import CorruptRecord, UsageError
from lockstep.files import (
    fsync,
    fsync_folder,
    open_plain,
    parse_json,
    read_object,
    set_mode,
    temporary_beside,
)

PART = "model"
HEADER = "slices"  # as engine.contents writes it
EMA = "/ema"
_NAME = re.compile(r"(model|optimizer)(?:-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True)
class Piece:
    """Where a block of a tensor stands: in a file, and in the whole."""

    file: Path
    start: int
    size: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass
class Whole:
    """A tensor and the pieces that it is cut into."""

    dtype: str
    shape: tuple[int, ...]
    pieces: list[Piece]

    @property
    def bytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * safetensors_file.BITS[self.dtype] // 8


def checkpoint_of(run: Run, step: int | None = None) -> Path:
    """The newest checkpoint that verifies, or that of a step. Raises UsageError, CorruptRecord."""
    paths = sorted(run.checkpoints.glob("step-*"), reverse=True)
    if step is not None:
        paths = [path for path in paths if path.name.removeprefix("step-").lstrip("0") == str(step)]
        if not paths:
            there = ", ".join(sorted(path.name for path in run.checkpoints.glob("step-*"))) or "none"
            raise UsageError(f"--step: found {step}, and the checkpoints of {run.shown} are: {there}")
    problems = []
    for path in paths:
        findings = verify_folder(path)
        if not findings:
            return path
        problems.append(f"{path.name}: {'; '.join(findings)}")
    if problems:
        raise CorruptRecord(f"no checkpoint of {run.shown} is whole: {' | '.join(problems)}")
    raise UsageError(f"run {run.shown} has no checkpoint to export")


def write(checkpoint: Path, target: Path, about: dict[str, str], average: bool = False) -> int:
    """Write the weights of a verified checkpoint to ``target``, whole or not at all; returns how many tensors.

    ``about`` goes into the header as the format's metadata. With ``average`` it is the moving average of the weights,
    where the checkpoint has one. Raises CorruptRecord, UsageError.
    """
    tensors = weights(checkpoint, average)
    # Larger elements first, so that each tensor begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-safetensors_file.BITS[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": about}
    place = 0
    for name in order:
        whole = tensors[name]
        offsets = [place, place + whole.bytes]
        header[name] = {"dtype": whole.dtype, "shape": list(whole.shape), "data_offsets": offsets}
        place += whole.bytes
    text = strict_json.encode(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    with temporary_beside(target) as temporary:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(base + place)
        for name in order:
            fill(temporary, base + header[name]["data_offsets"][0], tensors[name])
        with temporary.open("rb+") as file:
            fsync(file.fileno())
        set_mode(temporary, 0o644)
        temporary.replace(target)
    fsync_folder(target.parent)
    return len(tensors)


def weights(checkpoint: Path, average: bool = False) -> dict[str, Whole]:
    """The tensors that an export of the weights, or of their moving average, has. Raises as ``write`` does."""
    tensors = read(checkpoint, PART)
    if average:
        moving = {name: whole for name, whole in read(checkpoint, "optimizer").items() if name.endswith(EMA)}
        if not moving:
            raise UsageError(f"{checkpoint.name} has no moving average: training.ema_decay was not set")
        averages = {name.removesuffix(EMA): whole for name, whole in moving.items()}
        tensors |= averages
        tensors |= {name: averages[first] for name, first in _aliases(checkpoint) if first in averages}
    return tensors


def put_together(whole: Whole) -> bytes:
    """All bytes of a tensor, in memory. Raises OSError, ValueError where a piece is not all there."""
    import numpy

    width = safetensors_file.BITS[whole.dtype] // 8
    into = numpy.zeros((*whole.shape, width), numpy.uint8)
    for piece in whole.pieces:
        with open_plain(piece.file, 3) as file:
            file.seek(piece.start)
            content = file.read(math.prod(piece.size) * width)
        block = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.size, strict=True))
        into[block] = numpy.frombuffer(content, numpy.uint8).reshape(*piece.size, width)
    return into.tobytes()


def _aliases(checkpoint: Path) -> list[tuple[str, str]]:
    """Further names of weights that the model uses in several places, and the first, which has the average."""
    found = mapping(read_object(checkpoint / "state.json").get("aliases"))
    return [(name, first) for name, first in found.items() if isinstance(first, str)]


def read(checkpoint: Path, part: str) -> dict[str, Whole]:
    """The tensors of a part of a checkpoint, and where their pieces stand. Raises CorruptRecord."""
    found: dict[str, Whole] = {}
    for path in sorted(checkpoint.iterdir()):
        name = _NAME.fullmatch(path.name)
        if not name or name[1] != part:
            continue
        try:
            _take_in(found, path)
        except (safetensors_file.Broken, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise CorruptRecord(f"{path} cannot be read: {error}") from None
    for name_of, whole in found.items():
        if sum(math.prod(piece.size) for piece in whole.pieces) != math.prod(whole.shape):
            raise CorruptRecord(f"{checkpoint}: the slices of {name_of} do not make a whole")
    return found


def _take_in(found: dict[str, Whole], path: Path) -> None:
    places = _places(path)
    for name, tensor in safetensors_file.read_header(path).items():
        if safetensors_file.BITS[tensor.dtype] % 8:
            raise ValueError(f"{name} has elements of less than a byte")
        place = places.get(name, {"shape": tensor.shape, "offsets": [0] * len(tensor.shape)})
        shape, offsets = tuple(map(int, place["shape"])), tuple(map(int, place["offsets"]))
        whole = found.setdefault(name, Whole(tensor.dtype, shape, []))
        fits = len(shape) == len(offsets) == len(tensor.shape) and all(
            start >= 0 and start + size <= all_
            for start, size, all_ in zip(offsets, tensor.shape, shape, strict=True)
        )
        if not fits or (whole.dtype, whole.shape) != (tensor.dtype, shape):
            raise ValueError(f"{name} has a slice that does not fit the others")
        whole.pieces.append(Piece(path, tensor.start, tensor.shape, offsets))


def metadata(path: Path) -> dict[str, Any]:
    """What the header says besides the tensors; its size was judged by ``read_header`` where it matters."""
    with open_plain(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > safetensors_file.LARGEST_HEADER_BYTES:
            raise safetensors_file.Broken(f"states a header of {length:,} bytes")
        value = mapping(parse_json(file.read(length)))
    return mapping(value.get("__metadata__"))


def _places(path: Path) -> dict[str, Any]:
    """What the header says of slices."""
    places = parse_json(metadata(path).get(HEADER, "{}"))
    if not isinstance(places, dict):
        raise ValueError("its slices are no JSON object")
    return places


def fill(target: Path, start: int, whole: Whole) -> None:
    """Copy a tensor's pieces, mapped, in whatever dimensions they are cut."""
    import numpy

    if not whole.bytes:
        return
    width = safetensors_file.BITS[whole.dtype] // 8
    into = numpy.memmap(target, numpy.uint8, "r+", start, (*whole.shape, width))
    for piece in whole.pieces:
        if not math.prod(piece.size):
            continue
        source = numpy.memmap(piece.file, numpy.uint8, "r", piece.start, (*piece.size, width))
        block = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.size, strict=True))
        into[block] = source
        source._mmap.close()  # type: ignore[attr-defined]
    into.flush()
    into._mmap.close()  # type: ignore[attr-defined]
