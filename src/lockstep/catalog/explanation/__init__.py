"""`lockstep explain`: from a file anywhere to every run that holds its bytes, by digest, and where that run came from.

Seals and checkpoints' manifests are searched as text, and only those that hold the digest are read further; of
runs that are not sealed, files of the same size are hashed. Tombstones answer for runs that were removed.
"""

from pathlib import Path
from typing import Any

from lockstep.catalog import tombstones
from lockstep.catalog.explanation.ancestry import ancestry
from lockstep.catalog.explanation.exported import exported
from lockstep.catalog.explanation.holders import Holding, Target, find_holders
from lockstep.catalog.explanation.similar import most_similar
from lockstep.catalog.manifest import MANIFEST, differences, digest_of_file, walk
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run
from lockstep.errors import UsageError
from lockstep.files import printable, read_object

__all__ = ["explain"]
MOST_DESCRIBED = 50
MOST_FILES = 1000


def explain(catalog: Path, path: Path) -> dict[str, Any]:
    """All that the catalog knows of a file or a folder. Raises UsageError where there is nothing to explain.

    ``held_by`` has the run that made it first; ``similar`` says, where no run holds it, of which run's file it
    is a part or a changed copy, and ``exported`` of which checkpoint it is the exported weights, by its own word, which
    is compared, or by the note that was made when it was written; ``findings`` is what a checkpoint's folder differs in
    from its own manifest.
    """
    path, catalog = path.absolute(), catalog.resolve()
    targets, findings = _targets(path)
    holdings = find_holders(catalog, targets)
    largest = targets[0]
    said = exported(catalog, largest) if path.is_file() and not holdings else None
    described = [_described(catalog, each) for each in holdings[:MOST_DESCRIBED]]
    return {
        "path": str(path),
        "kind": "folder" if path.is_dir() else "file",
        "sha256": largest.sha256,
        "bytes": largest.size,
        "findings": findings,
        "held_by": described,
        "also_held_by": [each.run_id for each in holdings[MOST_DESCRIBED:]],
        "exported": _exported(catalog, *said) if said else None,
        "similar": None if holdings or said else most_similar(catalog, largest),
    }


def _targets(path: Path) -> tuple[list[Target], list[str]]:
    """What to look for: a file; or of a folder its manifest, which stands for the rest, else every file in it."""
    if path.is_dir():
        names = [MANIFEST] if (path / MANIFEST).is_file() else [name for name, _ in walk(path)]
        findings = [str(each) for each in differences(path)] if names == [MANIFEST] else []
        if len(names) > MOST_FILES:
            raise UsageError(f"{path} has {len(names):,} files: name one of them, or a checkpoint's folder")
        targets = [target for name in names if (target := _target(path / name))]
        if not targets:
            raise UsageError(f"{path} holds no files")
        return targets, findings
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    target = _target(path.resolve())
    if target is None:
        raise UsageError(f"{path} is no plain file that can be read")
    return [target], []


def _target(path: Path) -> Target | None:
    try:
        return Target(path, digest_of_file(path), path.stat().st_size)
    except OSError:
        return None


def _described(catalog: Path, holding: Holding) -> dict[str, Any]:
    tombstone = holding.tombstone
    known = tombstone if tombstone is not None else tombstones.describe(Run(catalog / holding.run_id))
    keys = ("tag", "created", "cause", "summary", "code", "argv", "uv_lock", "packages", "machine")
    parent = mapping(known.get("parent"))
    return {
        "run_id": holding.run_id,
        "files": {name: holding.state(catalog, name) for name in holding.files},
        "made": holding.made,
        "step": _step(catalog, holding, known, parent),
        "status": "collected" if tombstone is not None else known["status"],
        "removed": at(tombstone, "removed"),
        **{key: known.get(key) for key in (*keys, "environment", "data")},
        "patch_file": _patch_file(catalog, holding, known),
        "ancestry": ancestry(catalog, holding.run_id, parent),
    }


def _exported(catalog: Path, said: dict[str, Any], holding: Holding | None) -> dict[str, Any]:
    return said | {"from": _described(catalog, holding) if holding else None}


def _step(catalog: Path, holding: Holding, known: dict[str, Any], parent: dict[str, Any]) -> int | None:
    """The update after which the file was written; None for what belongs to no step."""
    for name in holding.files:
        parts = name.split("/")
        folder = parts[1] if parts[0] == "checkpoints" and len(parts) > 2 else ""
        if parts[0] == "start":
            folder = str(parent.get("checkpoint"))
        digits = folder.removeprefix("step-")
        if folder.startswith("step-") and digits.isdecimal() and len(digits) < 16:
            return int(digits)
        if name == "distributed_model_checkpoint.pt":
            plan = read_object(catalog / holding.run_id / "distributed.json", depth=2)
            done = known.get("steps") or plan.get("steps")
            return done if isinstance(done, int) else None
    return None


def _patch_file(catalog: Path, holding: Holding, known: dict[str, Any]) -> str | None:
    name = at(known, "code", "patch", "file")
    if holding.tombstone is not None or not isinstance(name, str) or "/" in name:
        return None
    file = catalog / holding.run_id / name
    return printable(str(file)) if file.is_file() and not file.is_symlink() else None
