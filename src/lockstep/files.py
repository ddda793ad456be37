"""Files that are either the old ones or the new ones after any crash, and text that is safe to show.

``open_plain`` and what is built on it read records that anybody may have written: no link is followed, no
pipe is waited for, nothing larger than a stated size is taken in.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lockstep import strict_json

CHUNK_BYTES = 1 << 20
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP)  # of a call that this kernel or file system does not have
LARGEST_OBJECT_BYTES = 16 << 20  # of a JSON object in a record: far above any real one
_PLAIN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe must not wait


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


def fsync(descriptor: int) -> None:
    """Wait until a file is on disk, where its file system knows of that: some have nothing to wait for."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *UNSUPPORTED):
            raise


def set_mode(place: Path | int, mode: int) -> None:
    """Change who may read and write a file, where its file system keeps that (FAT, and some of networks, do not).

    It guards against slips only: what a file holds is vouched for by digests.
    """
    try:
        os.chmod(place, mode)  # noqa: PTH101 - also a descriptor
    except OSError as error:
        if error.errno not in (errno.EPERM, *UNSUPPORTED):
            raise


def fsync_folder(path: Path) -> None:
    """Make names that were added to or removed from a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor)
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
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        with temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                set_mode(file.fileno(), mode)
                fsync(file.fileno())
            temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)  # nobody knows the temporary name
        del error.filename2  # None would be shown, as "-> None"
        raise


def write_json(path: Path, value: object) -> None:
    """Write a value as indented strict JSON, atomically."""
    write_atomically(path, strict_json.encode(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileNotFoundError, or ValueError where the content is not JSON."""
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """The value. Raises ValueError for all that is not JSON, or nested deeper than can be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def open_plain(path: Path, depth: int = 1) -> BufferedReader:
    """Open a plain file for reading where the last ``depth`` names of its path are no links.

    With the depth of a record's file in its folder, nothing that stands in the folder can lead out of it.
    Raises OSError for whatever else is found there: a link, a pipe, a folder, an impossible name.
    """
    try:
        if depth == 1:
            if path.name in ("", ".."):
                raise OSError(errno.EINVAL, "leads out of its folder", str(path))
            descriptor = os.open(path, _PLAIN)
        else:
            names = path.parts[-depth:]
            if ".." in names or len(path.parents) < depth:
                raise OSError(errno.EINVAL, "leads out of its folder", str(path))
            descriptor = _open_below(path.parents[depth - 1], names)
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), repr(str(path))) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no plain file", str(path))
    return os.fdopen(descriptor, "rb")


def open_inside(folder: Path, name: str) -> BufferedReader:
    """Open a plain file of a folder by a relative name that somebody recorded. Raises OSError as above."""
    relative = Path(name)
    if not relative.parts or relative.is_absolute():
        raise OSError(errno.EINVAL, "leads out of its folder", name)
    return open_plain(folder / relative, depth=len(relative.parts))


def _open_below(folder: Path, names: tuple[str, ...]) -> int:
    """Open a file step by step from a folder, so that no name on the way may be a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for index, name in enumerate(names):
        flags = _PLAIN if index == len(names) - 1 else _PLAIN | os.O_DIRECTORY
        try:
            opened = os.open(name, flags, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = opened
    return descriptor


def read_plain(path: Path, limit: int, depth: int = 1) -> bytes:
    """A plain file's bytes. Raises OSError as ``open_plain`` does, and where there are more than ``limit``."""
    with open_plain(path, depth) as file:
        # No more than there is: room for all of a large limit would be made and given back.
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", str(path))
    return content


def read_beginning(path: str, limit: int) -> bytes:
    """At most so many bytes of a plain file, by the shortest way: lists read ten thousand. Raises OSError as above."""
    descriptor = os.open(path, _PLAIN)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no plain file", path)
        content = os.read(descriptor, min(limit, found.st_size))
        # Some file systems give less than was asked for, and none gives more than 2 GiB at once.
        while len(content) < min(limit, found.st_size) and (
            more := os.read(descriptor, limit - len(content))
        ):
            content += more
        return content
    finally:
        os.close(descriptor)


def read_object(path: Path, depth: int = 1, limit: int = LARGEST_OBJECT_BYTES) -> dict[str, Any]:
    """A JSON object from a plain file; empty where it is missing, torn, too large or anything else."""
    try:
        value = parse_json(read_plain(path, limit, depth))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line is ignored, and a missing file is empty."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    objects = []
    for line in lines:
        try:
            value = parse_json(line) if line else None
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


def readable(text: str) -> str:
    """Text of the system's (a path, an argument) without bytes that the locale's encoding could not read.

    Python holds those as lone surrogates, which nothing can write. Here they are the UTF-8 that they are, or escapes.
    """
    if text.isascii():
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate of another kind, from a record
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Recorded text made safe for a terminal: control characters become visible escapes.

    Also those that turn the direction of writing round, show nothing, or are no characters at all.
    """
    if text.isprintable():
        return text
    text = readable(text)
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\x{ord(character):02x}"
        for character in text
    )


def one_line(text: str) -> str:
    """The same on one line: line breaks and tabs, which a file's name may hold, become escapes as well."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
