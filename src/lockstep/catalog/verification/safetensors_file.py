"""Whether a .safetensors file can be loaded, from its header alone and without torch.

The format: 8 bytes (little-endian) that give the header's length, a JSON object of that length, then the
tensors' bytes without a gap (https://github.com/huggingface/safetensors, "Format").
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.files import open_plain, parse_json

LARGEST_HEADER_BYTES = 100_000_000  # the format's own limit
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Broken(Exception):
    """The file cannot be loaded; the message says why."""


def read_header(path: Path, depth: int = 1) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises Broken for a file that no reader would take, and OSError."""
    with open_plain(path, depth) as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(0)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise Broken(f"has {size} bytes: too few for a safetensors file")
        length = struct.unpack("<Q", prefix)[0]
        if length > min(LARGEST_HEADER_BYTES, size - 8):
            raise Broken(f"states a header of {length:,} bytes, in a file of {size:,}")
        header = file.read(length)
    if not header.startswith(b"{"):
        raise Broken("has a header that is no JSON object")
    try:
        value = parse_json(header)
    except ValueError as error:
        raise Broken(f"has a header that is no JSON: {error}") from None
    tensors = {
        name: _tensor(name, entry, 8 + length) for name, entry in value.items() if name != "__metadata__"
    }
    _without_gaps(tensors, 8 + length, size)
    return tensors


def _tensor(name: str, entry: Any, base: int) -> Tensor:
    known = isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}
    if not known or not isinstance(entry["dtype"], str) or entry["dtype"] not in BITS:
        raise Broken(f"has no dtype, shape and offsets that are known for tensor {name!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise Broken(f"has a shape or offsets that are none for tensor {name!r}")
    bits = math.prod(shape) * BITS[entry["dtype"]]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise Broken(
            f"gives tensor {name!r} of shape {shape} and {entry['dtype']} {offsets[1] - offsets[0]:,} bytes"
        )
    return Tensor(entry["dtype"], tuple(shape), base + offsets[0], base + offsets[1])


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) < 64
        and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
    )


def _without_gaps(tensors: dict[str, Tensor], base: int, size: int) -> None:
    position = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            raise Broken(f"has tensor {name!r} at byte {tensor.start:,}, where {position:,} was due")
        position = tensor.stop
    if position != size:
        raise Broken(f"has {size:,} bytes, and its tensors end at {position:,}")
