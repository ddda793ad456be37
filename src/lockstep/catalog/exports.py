"""What was exported, by the digest of the file: a note each in .catalog/.exports/, beside the runs and not in them.

A file of weights that went out into the world holds other bytes than the checkpoint that it was made of, and a plain
.pt says nothing of itself. The note leads back from it, also when the run was removed since.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.manifest import MANIFEST, digest_of_file
from lockstep.catalog.report.values import moment
from lockstep.catalog.run import Run, is_name
from lockstep.files import fsync_folder, read_object, write_json

FOLDER = ".exports"
WEIGHTS, AVERAGE = "weights", "moving average of the weights"
CHECKPOINT = re.compile(r"step-([0-9]{8,15})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def note(run: Run, checkpoint: Path, file: Path, of: str, tensors: int) -> None:
    """Note a file that has just been written. A catalog that cannot be written to goes without."""
    with contextlib.suppress(OSError):
        folder = run.catalog / FOLDER
        # Another user's catalog gets no files of ours, and no link leads out of one.
        if run.catalog.stat().st_uid != os.geteuid() or folder.is_symlink():
            return
        folder.mkdir(exist_ok=True)
        digest = digest_of_file(file)
        write_json(
            folder / f"{digest}.json",
            {
                "sha256": digest,
                "bytes": file.stat().st_size,
                "run_id": run.run_id,
                "checkpoint": checkpoint.name,
                "manifest_sha256": digest_of_file(checkpoint / MANIFEST),
                "of": of,
                "tensors": tensors,
                "written": events.utc_now(),
            },
        )
        fsync_folder(folder)


def find(catalog: Path, sha256: str) -> dict[str, Any] | None:
    """The note on a file of this digest; None where there is none that can be believed."""
    said = read_object(catalog / FOLDER / f"{sha256}.json", depth=2)
    run_id, name, manifest = said.get("run_id"), said.get("checkpoint"), said.get("manifest_sha256")
    whole = (
        said.get("sha256") == sha256
        and isinstance(run_id, str)
        and is_name(run_id)
        and isinstance(name, str)
        and CHECKPOINT.fullmatch(name) is not None
        and isinstance(manifest, str)
        and _SHA256.fullmatch(manifest) is not None
        and said.get("of") in (WEIGHTS, AVERAGE)
        and run_id != "latest"
        and type(said.get("tensors")) is int
        and said["tensors"] >= 0
        and moment(said.get("written")) is not None
    )
    return said if whole else None
