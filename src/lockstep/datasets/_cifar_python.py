"""Reading CIFAR's "Python version" without unpickling: its opcodes are walked as data, and nothing is ever called.

The format (pickletools documents it) is a program for a small stack machine, whose GLOBAL and REDUCE opcodes name
and call any function. Here a name stays a name and a call stays a note of itself, so that a hostile file can at most
be refused. docs/adr/0011-cifar-is-read-without-unpickling.md says why this is not left to a restricted unpickler.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import UsageError

LARGEST = 2**28  # bytes of a file
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
VALUES = {  # opcodes that push what they hold
    *("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "GLOBAL"),
}
_MARK = object()
FRESH: dict[str, Callable[[], Any]] = {  # opcodes that push something of their own
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class Call:
    """What a file asks to be called, with what; and what it wants done to the result. None of it is done."""

    name: object
    arguments: object
    state: object = field(default=None)


def read_batch(path: Path, width: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (samples, width) and labels of one batch; UsageError where the file is anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        batch = _walk(path.read_bytes())
        by_name = {_text(key): value for key, value in dict(batch).items()}
        labels = np.array(by_name["labels"], dtype=np.int64)
        pixels = _array(by_name["data"]).reshape(-1, width)
        if labels.ndim != 1 or len(labels) != len(pixels):
            raise ValueError(f"{len(pixels)} pictures and labels of shape {labels.shape}")
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"{path} is not a batch of CIFAR-10's Python version ({type(error).__name__}: {error}). Use the files of "
            "cifar-10-binary.tar.gz instead"
        ) from None
    return pixels, labels


def _text(key: object) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


def _array(found: object) -> NDArray[np.uint8]:
    """The bytes of an array of bytes, from the note of how it would be rebuilt."""
    if not isinstance(found, Call) or found.name not in RECONSTRUCT or not isinstance(found.state, tuple):
        raise ValueError("data is not an array")
    _, shape, kind, fortran, content = found.state
    if not isinstance(kind, Call) or kind.name != "numpy dtype" or kind.arguments[0] not in ("u1", b"u1"):  # type: ignore[index]
        raise ValueError("data is not an array of bytes")
    if (
        isinstance(content, Call) and content.name == "_codecs encode"
    ):  # how Python 3 writes bytes for Python 2
        content = content.arguments[0]  # type: ignore[index]
    raw = content if isinstance(content, bytes) else str(content).encode("latin-1")
    values = np.frombuffer(raw, np.uint8)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _walk(content: bytes) -> Any:
    """The value that the opcodes describe, with every call left as a note."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in _opcodes(content):
        if name in VALUES or name in FRESH:
            stack.append(FRESH[name]() if name in FRESH else argument)
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("REDUCE", "STACK_GLOBAL"):
            second, first = stack.pop(), stack.pop()
            stack.append(Call(first, second) if name == "REDUCE" else f"{first} {second}")
        elif name == "STOP":
            return stack.pop()
        else:
            _combine(name, stack)
    raise ValueError("it ends in the middle")


def _opcodes(content: bytes) -> Iterator[tuple[str, Any]]:
    return (
        (opcode.name, argument)
        for opcode, argument, _ in pickletools.genops(content)
        if opcode.name not in ("PROTO", "FRAME")
    )


def _combine(name: str, stack: list[Any]) -> None:
    """Opcodes that put what lies on top into what lies below."""
    if name == "BUILD":
        state = stack.pop()
        if not isinstance(stack[-1], Call):
            raise ValueError("a state without an object")
        stack[-1].state = state
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        start = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[start + 1 :]
        del stack[start:]
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "APPENDS":
            stack[-1].extend(items)
        else:
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("APPEND", "SETITEM"):
        items = [stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        if name == "APPEND":
            stack[-1].append(items[0])
        else:
            stack[-1][items[0]] = items[1]
    else:
        raise ValueError(f"it uses {name}, which no batch of pictures needs")
