"""A repetition stops at a file that git does not hold: which one of the original folder is missing, in one line."""

import os
import re
from pathlib import Path

from lockstep.catalog.report.values import at
from lockstep.catalog.run import Run
from lockstep.errors import LockstepError, RunFailed
from lockstep.files import printable, read_object

_MISSING = re.compile(r"FileNotFoundError: \[Errno 2\] [^:\n]*: (['\"])(.+?)\1")


def explained(error: Exception, repeats: Run | None, folder: Path) -> LockstepError | None:
    """The error in words where it is that of a file beside the recorded code; None for every other.

    ``folder`` is where in the recorded code the repetition was started.
    """
    found = _MISSING.search(f"{type(error).__name__}: {error}")
    if repeats is None or found is None:
        return None
    record = read_object(repeats.provenance)
    inside, cwd = at(record, "git", "folder"), record.get("cwd")
    root = folder.resolve()
    for part in Path(inside if isinstance(inside, str) else ".").parts:
        root = root.parent if part not in (".", "..") else root
    file = Path(found[2])
    if not file.is_absolute() or not Path(os.path.normpath(file)).is_relative_to(root) or file.exists():
        return None
    name = Path(os.path.normpath(file)).relative_to(root)
    original = os.path.normpath(Path(str(cwd)) / os.path.relpath(root / name, folder.resolve()))
    return RunFailed(
        f"the code reads {printable(str(name))}, which is neither in the recorded commit nor in its patch: "
        f"{printable(original)} of the original folder is missing beside the code. Let git hold it (git add, and take "
        "it out of .gitignore) or have the code read it by an absolute path outside of the repository, and make the "
        "run anew",
        getattr(error, "cause", "exception"),
    )
