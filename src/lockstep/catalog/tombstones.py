"""What is left of a run that was removed: what it was, and the digest of every file that it had.

`.catalog/.tombstones/<run_id>.json`. It answers where a checkpoint came from, and keeps the chain of parents
whole, when the bytes are gone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockstep.catalog import events, status
from lockstep.catalog.lineage import TOMBSTONES
from lockstep.catalog.manifest import digest_of_file, outside_the_seal, read_manifest, walk
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run, is_name
from lockstep.catalog.seal import head_of
from lockstep.files import fsync_folder, read_object, write_json

FORMAT = 1
_CODE = ("commit", "branch", "remote", "dirty", "patch", "absent", "patch_absent")


def describe(run: Run) -> dict[str, Any]:
    """What a run was, in a page: its origin, code, data, environment, and what came of it."""
    history = events.read(run)
    created: dict[str, Any] = next((event for event in history if event["event"] == "created"), {})
    state, provenance = status.of(run), read_object(run.provenance)
    data, results = read_object(run.data / "data.json", depth=2), read_object(run.results)
    code = mapping(provenance.get("git"))
    return {
        "run_id": created["run_id"] if isinstance(created.get("run_id"), str) else run.run_id,
        "tag": created.get("tag"),
        "created": created.get("time"),
        "parent": created.get("parent"),
        "summary": mapping(created.get("summary")),
        "status": state.word,
        "cause": state.cause,
        "code": {key: code[key] for key in _CODE if key in code},
        "argv": provenance.get("argv"),
        "uv_lock": at(provenance, "uv_lock", "sha256"),
        "packages": mapping(provenance.get("packages")),
        "machine": mapping(provenance.get("machine")),
        "environment": mapping(provenance.get("environment")),
        "data": {
            "identity": data.get("identity"),
            "files": {name: at(entry, "sha256") for name, entry in mapping(data.get("files")).items()},
        },
        "steps": at(results, "training", "steps"),
        "test": {key: at(results, "evaluation", "final", "test", key) for key in ("accuracy", "loss")},
    }


def make(run: Run, why: Mapping[str, Any]) -> dict[str, Any]:
    """The tombstone of a run that is about to go; files that no seal covers are hashed now."""
    manifest, _ = read_manifest(run.path)
    files = dict(manifest["files"]) if manifest and "events" in manifest else {}
    for name, found in walk(run.path, outside_the_seal(run.path)):
        entry = files.get(name)
        if entry is None or entry["bytes"] != found.st_size:
            try:
                files[name] = {"bytes": found.st_size, "sha256": digest_of_file(run.path / name)}
            except OSError:
                continue  # a link or a pipe: it holds no bytes of this run
    return {
        "format": FORMAT,
        **describe(run),
        "head": head_of(run),
        "manifest_sha256": _digest(run.manifest),
        "events_sha256": _digest(run.events),
        "files": files,
        "removed": events.utc_now(),
        "why": dict(why),
    }


def write(catalog: Path, tombstone: dict[str, Any], run_id: str) -> None:
    """Put it in its place, on disk when this returns; one of an earlier run of this id is replaced."""
    folder = catalog / TOMBSTONES
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        fsync_folder(catalog)
    write_json(folder / f"{run_id}.json", tombstone)


def path_of(catalog: Path, run_id: str) -> Path:
    """Where the tombstone of a run would stand."""
    return catalog / TOMBSTONES / f"{run_id}.json"


def paths(catalog: Path) -> list[Path]:
    """Every tombstone, by run id."""
    folder = catalog / TOMBSTONES
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob("*.json") if is_name(path.stem))


def _digest(path: Path) -> str | None:
    try:
        return digest_of_file(path)
    except OSError:
        return None
