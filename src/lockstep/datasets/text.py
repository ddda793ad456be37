"""Text to be continued, from a file or every file of a folder, by characters or by bytes."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lockstep.datasets import Tokens
from lockstep.datasets._files import digest_of_files
from lockstep.errors import UsageError

SMALL_VOCABULARY = 256  # whose numbers fit into a byte


def text(
    seed: int,  # noqa: ARG001 - the splits are regions of the text
    test_fraction: float,  # noqa: ARG001 - the split is the caller's
    *,
    path: str = "data/text",
    level: Literal["character", "byte"] = "character",
    context_length: Annotated[int, Field(ge=1, le=1_000_000)] = 256,
) -> Tokens:
    """Every character that occurs is a class, in the order of their code points; or each of the 256 bytes."""
    contents = [file.read_bytes() for file in files(path)]
    if level == "byte":
        names = [chr(byte) if 32 <= byte < 127 else f"0x{byte:02x}" for byte in range(256)]
        return Tokens(np.frombuffer(b"".join(contents), np.uint8), names, context_length, level)
    tokens, classes = characters("".join(_decoded(*each) for each in zip(files(path), contents, strict=True)))
    return Tokens(tokens, classes, context_length, level)


def require(*, path: str, **_: Any) -> None:
    """Raise UsageError where the files are not there."""
    files(path)


def state(*, path: str, **_: Any) -> str:
    """A digest of the files."""
    return digest_of_files(files(path))


def files(path: str) -> list[Path]:
    """The file, or every file below the folder in the order of their paths; hidden ones are left out."""
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    found = [file for file in place.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(place))]
    if not found:
        raise UsageError(
            f"data.name: text found no file at {place.absolute()}. Put a text file there, or a folder of them, or say "
            "where one is with data.path=FILE; nothing is downloaded"
        )
    return sorted(found, key=lambda file: file.relative_to(place).as_posix())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _decoded(file: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 at byte {error.start} (0x{content[error.start]:02x}): convert it, or set "
            "data.level=byte"
        ) from None


def characters(whole: str) -> tuple[NDArray[Any], list[str]]:
    """The text as numbers of its own characters, and those characters."""
    codes = np.frombuffer(whole.encode("utf-32-le"), np.uint32)
    present = np.zeros(0x110000, dtype=bool)
    present[codes] = True
    numbers = np.cumsum(present, dtype=np.int32) - 1
    kind = np.uint8 if present.sum() <= SMALL_VOCABULARY else np.int32
    return numbers.astype(kind)[codes], [chr(code) for code in np.flatnonzero(present)]
