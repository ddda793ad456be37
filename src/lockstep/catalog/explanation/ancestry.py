"""A run's parents up to the first, each compared with what its child says of it."""

from pathlib import Path
from typing import Any

from lockstep.catalog import lineage, tombstones
from lockstep.catalog.manifest import MANIFEST, digest_of_file
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import RUN_ID, Run, is_name

MOST = 100


def ancestry(catalog: Path, run_id: str, parent: dict[str, Any]) -> list[dict[str, Any]]:
    """The nearest first. ``agrees``: the checkpoint is the one that the child began with (None: cannot be told)."""
    found: list[dict[str, Any]] = []
    seen = {run_id}
    while (name := parent.get("run_id")) and isinstance(name, str) and name not in seen and len(found) < MOST:
        seen.add(name)
        known = _known(catalog, name)
        checkpoint, expected = parent.get("checkpoint"), parent.get("manifest_sha256")
        kept = _digest(catalog, name, checkpoint, known)
        found.append(
            {
                "run_id": name,
                "kind": parent.get("kind") if isinstance(parent.get("kind"), str) else "resumed",
                "checkpoint": checkpoint,
                "agrees": None if kept is None or expected is None else kept == expected,
                "status": known.get("status", "absent"),
                "created": known.get("created"),
                "code": mapping(known.get("code")),
                "summary": mapping(known.get("summary")),
                "data": at(known, "data", "identity"),
            }
        )
        parent = mapping(known.get("parent"))
    return found


def _known(catalog: Path, name: str) -> dict[str, Any]:
    if not is_name(name):
        return {}
    run = Run(catalog / name)
    if run.events.is_file() and not run.path.is_symlink():
        return tombstones.describe(run)
    left = lineage.tombstone(catalog, name)
    return {**left, "status": "collected"} if left else {}


def _digest(catalog: Path, name: str, checkpoint: object, known: dict[str, Any]) -> str | None:
    if not isinstance(checkpoint, str) or not is_name(name) or not RUN_ID.fullmatch(checkpoint):
        return None
    place = f"start/{MANIFEST}" if checkpoint == "start" else f"checkpoints/{checkpoint}/{MANIFEST}"
    digest = at(known, "files", place, "sha256")
    if isinstance(digest, str):
        return digest
    try:
        return digest_of_file(catalog / name / place)
    except OSError:
        return None
