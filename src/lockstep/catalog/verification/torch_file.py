"""Whether a .pt file is what it should be: a zip of plain tensors, judged without unpickling anything.

`torch.save` writes a zip without compression: `data.pkl`, a pickle that names tensors by (storage, offset, size,
stride), and `data/N`, the storages' bytes. A pickle can call any function when it is loaded. Here its
instructions are only read (pickletools), those that a plain checkpoint needs are carried out on names and
numbers, and every other one is a finding.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.files import open_plain

LARGEST_PICKLE_BYTES = 64 << 20
MOST_STEPS = 20_000_000
ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ALLOWED = {_REBUILD, "collections OrderedDict", *(f"torch {name}" for name in ITEM_BYTES)}
_MARK = object()
_UNREADABLE = (ValueError, KeyError, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error)


class Broken(Exception):
    """The file cannot be loaded, or should not be; the message says why."""


@dataclass(frozen=True)
class Global:
    """A function or class that the pickle names; it is never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Bytes that tensors lie in: member ``data/<key>`` of the archive."""

    key: str
    item_bytes: int
    items: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset, size and stride are counted in items."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Contiguous, and all of its storage."""
        expected: list[int] = []
        items = 1
        for length in reversed(self.size):
            expected.insert(0, items)
            items *= length
        return self.offset == 0 and items == self.storage.items and list(self.stride) == expected


class Archive:
    """An open .pt file; ``value`` is what it holds, tensors as descriptions. Raises Broken, and OSError."""

    def __init__(self, path: Path) -> None:
        self._file = open_plain(path)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._members = {info.filename: info for info in self._zip.infolist()}
            self.prefix = self._check_members(self._file.seek(0, 2))
            content = self._zip.read(f"{self.prefix}/data.pkl")
        except (zipfile.BadZipFile, *_UNREADABLE) as error:
            self._file.close()
            raise Broken(f"is no archive that can be read: {error}") from None
        except BaseException:
            self._file.close()
            raise
        self.storages: dict[str, Storage] = {}
        try:
            self.value = _Reader(content, self.storages).run()
            self._check_storages()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def read_in_parts(self, storage: Storage, take: Callable[[bytes], object], part: int = 1 << 20) -> None:
        """Hand a storage's bytes over, a part at a time; the archive's own checksum is compared on the way."""
        try:
            with self._zip.open(f"{self.prefix}/data/{storage.key}") as member:
                while content := member.read(part):
                    take(content)
        except (zipfile.BadZipFile, *_UNREADABLE) as error:
            raise Broken(f"has damaged bytes in data/{storage.key}: {error}") from None

    def _check_members(self, size: int) -> str:
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or len(self._members) != len(self._zip.infolist()):
            raise Broken("is an archive without exactly one data.pkl, or with a name twice")
        packed = [name for name, info in self._members.items() if info.compress_type or info.flag_bits & 1]
        if packed or sum(info.file_size for info in self._members.values()) > size:
            raise Broken(
                "is an archive with compressed or overlapping members, which torch.save never writes"
            )
        if self._members[pickles[0]].file_size > LARGEST_PICKLE_BYTES:
            raise Broken(f"has a data.pkl of more than {LARGEST_PICKLE_BYTES:,} bytes")
        return pickles[0].removesuffix("/data.pkl")

    def _check_storages(self) -> None:
        for key, storage in self.storages.items():
            info = self._members.get(f"{self.prefix}/data/{key}")
            if info is None or info.file_size != storage.items * storage.item_bytes:
                found = "missing" if info is None else f"of {info.file_size:,} bytes"
                wanted = storage.items * storage.item_bytes
                raise Broken(f"has a tensor of {wanted:,} bytes in data/{key}, which is {found}")


class _Reader:
    """Carries out a pickle's instructions on names and numbers."""

    def __init__(self, content: bytes, storages: dict[str, Storage]) -> None:
        self._content, self._storages = content, storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            for count, (opcode, argument, position) in enumerate(pickletools.genops(self._content)):
                if count > MOST_STEPS:
                    raise Broken("has a pickle of too many instructions")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument, position or 0)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise Broken(f"has a pickle that cannot be read: {error!r}"[:300]) from None
        raise Broken("has a pickle without an end")

    def _step(self, name: str, argument: Any, position: int) -> None:
        stack = self._stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in _TUPLES:
            stack.append(self._tuple(_TUPLES[name]))
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(_named(argument))
        elif name in _OTHERS:
            _OTHERS[name](self)
        elif name != "PROTO":
            raise Broken(
                f"has the instruction {name} in its pickle (byte {position:,}): never in a plain checkpoint"
            )

    def _tuple(self, count: int | None) -> tuple[Any, ...]:
        if count is None:
            return tuple(self._since_mark())
        return tuple([self._stack.pop() for _ in range(count)][::-1])

    def new_dict(self) -> None:
        """EMPTY_DICT."""
        self._stack.append({})

    def new_list(self) -> None:
        """EMPTY_LIST."""
        self._stack.append([])

    def persistent(self) -> None:
        """BINPERSID: a storage in place of its identity."""
        self._stack.append(self._storage(self._stack.pop()))

    def call(self) -> None:
        """REDUCE: only the two calls that a plain checkpoint makes, and only described."""
        arguments = self._stack.pop()
        self._stack.append(self._called(self._stack.pop(), arguments))

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def set_items(self) -> None:
        """SETITEMS: pairs into the mapping below them."""
        pairs = self._since_mark()
        self._stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_item(self) -> None:
        """SETITEM: one pair."""
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1].update({key: value})

    def append_all(self) -> None:
        """APPENDS: to the list below."""
        items = self._since_mark()
        self._stack[-1].extend(items)

    def append_one(self) -> None:
        """APPEND: to the list below."""
        item = self._stack.pop()
        self._stack[-1].append(item)

    def _storage(self, identity: Any) -> Storage:
        word, kind, key, _, items = identity
        if word != "storage" or not isinstance(kind, Global) or not re.fullmatch(r"[0-9]{1,9}", key):
            raise Broken("has a tensor whose bytes are elsewhere")
        item_bytes = ITEM_BYTES[kind.name.removeprefix("torch ")]
        if type(items) is not int or items < 0:
            raise Broken(f"has a storage of {items!r} items")
        storage = Storage(key, item_bytes, items)
        if self._storages.setdefault(key, storage) != storage:
            raise Broken(f"has two storages of the name data/{key}")
        return storage

    def _called(self, function: Any, arguments: Any) -> Any:
        if function == Global("collections OrderedDict") and arguments == ():
            return {}
        if function != Global(_REBUILD):
            raise Broken("calls in its pickle what no plain checkpoint calls")
        storage, offset, size, stride = arguments[:4]
        tensor = Tensor(storage, offset, size, stride)
        numbers = [offset, *size, *stride]
        if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise Broken("has a tensor whose shape is none")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if 0 not in size and last >= storage.items:
            raise Broken(f"has a tensor that reaches beyond its bytes in data/{storage.key}")
        return tensor


def _named(name: str) -> Global:
    if name not in _ALLOWED:
        shown = name.replace(" ", ".")
        raise Broken(f"names {shown!r} in its pickle, which a plain checkpoint never does")
    return Global(name)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_TUPLES: dict[str, int | None] = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_OTHERS: dict[str, Callable[[_Reader], None]] = {
    "EMPTY_DICT": _Reader.new_dict,
    "EMPTY_LIST": _Reader.new_list,
    "SETITEMS": _Reader.set_items,
    "SETITEM": _Reader.set_item,
    "APPENDS": _Reader.append_all,
    "APPEND": _Reader.append_one,
    "BINPERSID": _Reader.persistent,
    "REDUCE": _Reader.call,
}
