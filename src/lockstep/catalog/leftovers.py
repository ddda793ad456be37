"""What a killed process can leave in a run's folder, and clearing it away under the run's lock."""

import os
import shutil
import stat
from pathlib import Path

from lockstep.catalog import status
from lockstep.catalog.manifest import read_manifest
from lockstep.catalog.run import Run
from lockstep.errors import UsageError

TEMPORARY = ".tmp-"
_PLACES = ("", "checkpoints", "data", "metrics", "logs", "start", "signatures")


def temporary(run: Run) -> list[Path]:
    """Half-written files and checkpoints; those that a seal lists are part of the record, and are not."""
    manifest, _ = read_manifest(run.path)
    sealed = set(manifest["files"]) if manifest else set()
    found = []
    for place in _PLACES:
        folder = run.path / place
        if folder.is_symlink() or not folder.is_dir():
            continue
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names are all that is needed
            listed = f"{place}/{name}" if place else name
            in_seal = any(each == listed or each.startswith(f"{listed}/") for each in sealed)
            if name.startswith(TEMPORARY) and not in_seal:
                found.append(folder / name)
    return found


def remove(path: Path) -> None:
    """Remove a file or a folder; a link goes, and never what it leads to."""
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def clear(run: Run) -> list[str]:
    """Remove them; the caller holds the run's lock. Returns their names in the folder."""
    found = temporary(run)
    for path in found:
        remove(path)
    return [path.relative_to(run.path).as_posix() for path in found]


def take(run: Run) -> int:
    """The lock of a run that has ended, for changes to its record. Raises UsageError while it is running."""
    now = status.of(run)
    if now.word == "running":
        raise UsageError(f"run {run.shown} is running (pid {now.pid}): wait for its end")
    if now.word == "unknown":
        raise UsageError(f"run {run.shown}: {now.message}. Whether it has ended cannot be told here")
    return status.hold(run)
