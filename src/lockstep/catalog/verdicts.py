"""Verdicts on reproductions: a file each in .catalog/.verdicts/, beside the runs and not in them.

A sealed run's folder is never written to, and the new run is sealed by the code of that time, which may know
nothing of verdicts. So a verdict stands beside both, bound to them by the digests of their manifests.
"""

import re
from pathlib import Path
from typing import Any

from lockstep.catalog.manifest import digest_of_file
from lockstep.catalog.run import Run, is_name
from lockstep.files import fsync_folder, read_object, set_mode, write_json

FOLDER = ".verdicts"


def bound(run: Run) -> dict[str, str | None]:
    """A run's name, and the digest of its manifest as it stands now; None where it is not sealed."""
    try:
        digest = digest_of_file(run.manifest)
    except OSError:
        digest = None
    return {"run_id": run.run_id, "manifest_sha256": digest}


def write(catalog: Path, run_id: str, verdict: dict[str, Any]) -> Path:
    """Keep a verdict under the name of the (first) new run; it is written once."""
    folder = catalog / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{run_id}.json"
    write_json(path, verdict)
    set_mode(path, 0o444)
    fsync_folder(folder)
    return path


def read(catalog: Path) -> list[dict[str, Any]]:
    """Every verdict of a catalog, newest first by the name of its run; what is damaged is passed over."""
    folder = catalog / FOLDER
    try:
        names = [] if folder.is_symlink() else sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    named = [name for name in reversed(names) if is_name(re.sub(r"\.json$", "", name))]
    return [found for name in named if (found := read_object(folder / name, 2))]
