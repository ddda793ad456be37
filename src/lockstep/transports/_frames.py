"""What travels with a message, so that one which is not the expected one is found out and its field named."""

import struct
import zlib
from typing import NamedTuple

import torch

from lockstep.errors import RunFailed
from lockstep.transports.base import Label

MAGIC = b"LKSP"
VERSION = 1
TOKEN_BYTES = 16
PAYLOAD_CHECKED, BYE = 1, 2  # flags
# magic, version, flags, dtype, source, run token, step, bucket, operation, tag, sequence, length, payload crc
_LAYOUT = struct.Struct("<4sHBBI16sQI24sIQQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _LAYOUT.size + _CHECKSUM.size
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES, 1)}


def code_of(dtype: torch.dtype) -> int:
    """The number of a type in a header. Raises RunFailed for one that is not sent."""
    if dtype not in _CODES:
        names = [str(each).removeprefix("torch.") for each in (dtype, *_DTYPES)]
        raise RunFailed(f"a tensor to send is {names[0]}, allowed: {', '.join(names[1:])}")
    return _CODES[dtype]


class Frame(NamedTuple):
    """The fields of a header that sender and receiver must agree on, in the order they are compared."""

    source: int
    sequence: int
    step: int
    bucket: int
    operation: bytes
    tag: int
    dtype: int
    length: int

    @classmethod
    def of(cls, source: int, sequence: int, label: Label, tag: int, tensor: torch.Tensor) -> "Frame":
        """What the header of this tensor's message says, or must say."""
        operation = label.operation.encode()[:24].ljust(24, b"\0")
        length = tensor.numel() * tensor.element_size()
        return cls(source, sequence, label.step, label.bucket, operation, tag, code_of(tensor.dtype), length)

    def difference(self, expected: "Frame") -> tuple[str, object, object] | None:
        """The first field that differs, what it is, and what it should be; None where all agree."""
        if self == expected:
            return None
        for name, found, wanted in zip(self._fields, self, expected, strict=True):
            if found != wanted:
                return name, readable(name, found), readable(name, wanted)
        raise AssertionError("unequal frames differ somewhere")


def readable(name: str, value: object) -> object:
    """The value of a field as a person would write it."""
    if name == "operation" and isinstance(value, bytes):
        return value.rstrip(b"\0").decode(errors="replace")
    if name == "dtype" and isinstance(value, int) and 0 < value <= len(_DTYPES):
        return str(_DTYPES[value - 1]).removeprefix("torch.")
    return value


class BadHeader(ValueError):
    """A header that is none of ours. ``field`` says where it fails, ``found`` and ``expected`` how."""

    def __init__(self, field: str, found: object, expected: object) -> None:
        super().__init__(f"{field} {found}, expected {expected}")
        self.field, self.found, self.expected = field, found, expected


def pack(frame: Frame, token: bytes, flags: int = 0, payload_checksum: int = 0) -> bytes:
    """The header as bytes, its own checksum last."""
    body = _LAYOUT.pack(
        MAGIC, VERSION, flags, frame.dtype, frame.source, token, frame.step, frame.bucket,
        frame.operation, frame.tag, frame.sequence, frame.length, payload_checksum,
    )  # fmt: skip
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(header: bytes | bytearray, token: bytes) -> tuple[Frame, int, int]:
    """The frame, its flags and the payload's checksum. Raises BadHeader, naming the field."""
    (
        magic, version, flags, dtype, source, found_token, step, bucket,
        operation, tag, sequence, length, payload_checksum,
    ) = _LAYOUT.unpack_from(header)  # fmt: skip
    if magic != MAGIC:
        raise BadHeader("magic", magic.hex(), MAGIC.hex())
    if version != VERSION:
        raise BadHeader("version", version, VERSION)
    (checksum,) = _CHECKSUM.unpack_from(header, _LAYOUT.size)
    if checksum != zlib.crc32(memoryview(header)[: _LAYOUT.size]):
        raise BadHeader("header checksum", f"{checksum:08x}", "that of its bytes")
    if found_token != token:
        raise BadHeader("run token", "of another run", "this run's")
    frame = Frame(source, sequence, step, bucket, operation, tag, dtype, length)
    return frame, flags, payload_checksum
