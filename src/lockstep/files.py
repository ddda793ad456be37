"""Files that are either the old ones or the new ones after any crash, and text that is safe to show."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Reads a chunk at a time, whatever the file's size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. What digests of values are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """The SHA-256 of a JSON value in its canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def fsync_folder(path: Path) -> None:
    """Make names that were added to or removed from a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A unique temporary name in the same folder; whatever still stands there afterwards is removed."""
    descriptor, name = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Replace a file in one step: a reader, or a crash, sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with temporary_beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    fsync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON, atomically. NaN and infinities are refused: no reader agrees on them."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileNotFoundError, or ValueError where the content is not JSON."""
    return json.loads(path.read_bytes())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line is ignored, and a missing file is empty."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    objects = []
    for line in lines:
        try:
            value = json.loads(line) if line else None
        except ValueError:
            continue  # a write that a kill cut short
        if isinstance(value, dict):
            objects.append(value)
    return objects


def contained(path: Path, folder: Path) -> Path:
    """The resolved path, or ValueError when it leads out of the folder (by `..`, absolutely, or by a link)."""
    resolved = (folder / path).resolve()
    if not resolved.is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of {folder}")
    return resolved


def printable(text: str) -> str:
    """Recorded text made safe for a terminal: control characters become visible escapes."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\x{ord(character):02x}"
        for character in text
    )
