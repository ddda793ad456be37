"""What can keep a catalog or a run from being read: links to nowhere, files, folders that other users keep closed."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.catalog.run import Run


def check_catalog(catalog: Path) -> Path:
    """The catalog itself, or UsageError for one that cannot be one: a link to nowhere, a file, one that is closed."""
    try:
        if catalog.is_symlink() and not catalog.exists():
            raise UsageError(
                f"the catalog {catalog} is a link to {catalog.readlink()}, which is not there: mount or make it, or "
                "name another with --catalog FOLDER"
            )
        if catalog.exists() and not catalog.is_dir():
            raise UsageError(f"the catalog {catalog} is a file; allowed: a folder (--catalog FOLDER)")
        if catalog.is_dir() and not os.access(catalog, os.R_OK | os.X_OK, effective_ids=True):
            raise PermissionError
    except PermissionError:
        raise UsageError(
            f"the catalog {catalog} cannot be read by {_me()}: ask its owner, or name another with --catalog FOLDER"
        ) from None
    return catalog


def unreadable(run: "Run") -> str | None:
    """Why a run's history cannot be read by this user; None where it can, or is not there."""
    try:
        os.lstat(run.events)
        closed = not os.access(run.events, os.R_OK, effective_ids=True)
    except PermissionError:
        closed = True
    except (OSError, ValueError):
        return None
    if not closed:
        return None
    try:
        owner = run.path.owner()
    except (OSError, KeyError):
        owner = "another user"
    return f"{run.path} cannot be read by {_me()}: it belongs to {owner}"


def _me() -> str:
    return f"user {os.geteuid()}"


def keep_out_of_git(catalog: Path) -> None:
    """Have git ignore the catalog from within: under any name, also where it is reached by a link."""
    with contextlib.suppress(OSError):  # it is there, or the folder is another user's
        descriptor = os.open(
            catalog / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644
        )
        os.write(descriptor, b"*\n")
        os.close(descriptor)
