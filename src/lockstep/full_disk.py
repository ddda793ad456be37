"""A disk that is full, or a limit on the size of files: said in one line, whoever met it and however it put it."""

import contextlib
import errno
import os
import re
import shutil
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
    error: BaseException, target: Path | None = None, needed: int | None = None, kept: str = ""
) -> RunFailed | None:
    """The error in words, with the file, what it needs and what there is; None where it is another one."""
    number = number_of(error)
    if number is None or isinstance(error, LockstepError):
        return None
    if target is None and isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        target = Path(os.fsdecode(error.filename))
    what = "a file" if target is None else str(target)
    needs = "could not be written" if needed is None else f"needs about {needed:,} bytes"
    if number == LIMITED:
        text = f"{what} {needs}, and a file may not be as large here (see ulimit -f). {kept}Raise the limit "
        text += "and continue the run"
    elif number == errno.EDQUOT:
        text = f"the disk is full for this user: {what} {needs}, and the quota allows no more (see quota). {kept}"
        text += "Make room and continue the run"
    else:
        text = f"the disk is full: {what} {needs} and {_free(target):,} are free. {kept}"
        text += "Make room and continue the run"
    return RunFailed(text, "disk full")


def _free(target: Path | None) -> int:
    for folder in target.absolute().parents if target else [Path.cwd()]:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


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
