"""A disk that is full, or a limit on the size of files: said in one line, whoever met it and however it put it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lockstep.errors import LockstepError, RunFailed

FULL = (errno.ENOSPC, errno.EDQUOT)
LIMITED = errno.EFBIG
# safetensors (and all of Rust) has the number in its message; torch's archives only say that less was written.
_RUST = re.compile(r"\(os error (\d+)\)")
_TORCH = re.compile(r"PytorchStreamWriter failed writing|unexpected pos")


def number_of(error: BaseException) -> int | None:
    """The error number, where an error means that a file found no room; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    found = _RUST.search(str(error))
    if number is None and found:
        number = int(found[1])
    if isinstance(error, RuntimeError) and _TORCH.search(str(error)):
        number = errno.ENOSPC
    return number if number in (*FULL, LIMITED) else None


def explained(
    error: BaseException,
    target: Path | None = None,
    needed: int | None = None,
    kept: str = "",
    then: str = "continue the run",
) -> RunFailed | None:
    """The error in words, with the file, what it needs and what there is; None where it is another one.

    ``then`` is what to do when there is room.
    """
    number = number_of(error)
    if number is None or isinstance(error, LockstepError):
        return None
    if target is None and isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        target = Path(os.fsdecode(error.filename))
    what = "a file" if target is None else str(target)
    needs = "could not be written" if needed is None else f"needs about {needed:,} bytes"
    if number == LIMITED:
        text = f"{what} {needs}, and a file may not be as large here (see ulimit -f). {kept}Raise the limit "
        text += f"and {then}"
    elif number == errno.EDQUOT:
        text = f"the disk is full for this user: {what} {needs}, and the quota allows no more (see quota). {kept}"
        text += f"Make room and {then}"
    else:
        text = f"the disk is full: {what} {needs}{_room(target, needed)}. {kept}Make room and {then}"
    return RunFailed(text, "disk full")


def _room(target: Path | None, needed: int | None) -> str:
    """What is free, measured when the unfinished file was removed: it may look like enough, and is not."""
    for folder in target.absolute().parents if target else [Path.cwd()]:
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            free = found.f_bavail * found.f_frsize
            if found.f_files and not found.f_favail:
                return ", and the disk takes no more files, whatever their size (see df -i)"
            if needed is not None and free < needed:
                return f" and {free:,} bytes are free"
            return f": the {free:,} bytes that are free are not enough"
    return ""


@contextlib.contextmanager
def needing(target: Path, bytes_: int | None = None, kept: str = "") -> Iterator[None]:
    """Say it in words where there is no room for a file. Raises RunFailed, with the cause "disk full"."""
    try:
        yield
    except Exception as error:
        said = explained(error, target, bytes_, kept)
        if said is None:
            raise
        raise said from error
