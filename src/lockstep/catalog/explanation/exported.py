"""Whether a file is the exported weights of a run's checkpoint.

No run holds the bytes of an export. A .safetensors file says in its header which checkpoint it was made of, and is
compared with it tensor by tensor: the header is anybody's word, and only says where to look. Other files, and those of
runs that were removed, are known by the note that was made when they were written.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from lockstep.catalog import exports, lineage
from lockstep.catalog.explanation.holders import Holding, Target, created_of
from lockstep.catalog.export import plain_weights
from lockstep.catalog.export.plain_weights import Piece, Whole
from lockstep.catalog.manifest import MANIFEST, digest_of_file, verify_folder
from lockstep.catalog.report.values import at
from lockstep.catalog.run import Run, is_name
from lockstep.catalog.verification import safetensors_file
from lockstep.errors import CorruptRecord, UsageError
from lockstep.files import CHUNK_BYTES, open_plain

MOST_NAMED = 20


def exported(catalog: Path, target: Target) -> tuple[dict[str, Any], Holding | None] | None:
    """What is known of it as an export; None where nothing is. The holding is the checkpoint's, if any."""
    said = _by_its_header(catalog, target.path)
    noted = exports.find(catalog, target.sha256)
    # A note is a word only: where a header names a checkpoint that is there, they were compared.
    if noted is None or (said is not None and _place(catalog, noted).exists()):
        return said
    return _by_its_note(catalog, noted)


def _place(catalog: Path, noted: dict[str, Any]) -> Path:
    return Run(catalog / noted["run_id"]).checkpoints / str(noted["checkpoint"])


def _by_its_note(catalog: Path, said: dict[str, Any]) -> tuple[dict[str, Any], Holding | None]:
    """The checkpoint, or where it was removed since, its run; where that was removed as well, its tombstone."""
    run, checkpoint, digest = Run(catalog / said["run_id"]), _place(catalog, said), said["manifest_sha256"]
    named = exports.CHECKPOINT.fullmatch(checkpoint.name)
    assert named is not None
    keys = ("run_id", "checkpoint", "of", "tensors", "written")
    found = {key: said[key] for key in keys} | {"same": True, "why": None, "step": int(named[1])}
    name, tombstone = f"checkpoints/{checkpoint.name}/{MANIFEST}", None
    if run.path.is_symlink() or not run.events.is_file():
        tombstone = lineage.tombstone(catalog, run.run_id)
        if not tombstone:
            return found, None
        known = at(tombstone, "files", name, "sha256")
    else:
        known = digest_of_file(checkpoint / MANIFEST) if (checkpoint / MANIFEST).is_file() else None
        if checkpoint.exists() and (why := _not_there(catalog, run.run_id, checkpoint)):
            found |= {"same": False, "why": why}
    if known not in (None, digest):
        found |= {"same": False, "why": "its checkpoint of that name is another one than was noted"}
    return found, Holding(run.run_id, {name: digest}, created_of(run.events), tombstone)


def _by_its_header(catalog: Path, path: Path) -> tuple[dict[str, Any], Holding | None] | None:
    """What the file says that it is and what was found; None for one that does not say so.

    The holding is that of the checkpoint, where there is one to compare with.
    """
    try:
        tensors = safetensors_file.read_header(path)
        said = plain_weights.metadata(path)
    except (OSError, ValueError, safetensors_file.Broken):
        return None
    run_id, name = said.get("run_id"), said.get("checkpoint")
    if not isinstance(run_id, str) or not isinstance(name, str):
        return None
    found: dict[str, Any] = {"run_id": run_id, "checkpoint": name, "same": False, "why": None}
    named = exports.CHECKPOINT.fullmatch(name)
    if not is_name(run_id) or run_id == "latest" or named is None:
        return found | {"why": "these are no names of a run and of a checkpoint"}, None
    found["step"] = int(named[1])
    checkpoint = Run(catalog / run_id).checkpoints / name
    if why := _not_there(catalog, run_id, checkpoint):
        return found | {"why": why}, None
    try:
        found |= _compared(path, tensors, checkpoint)
    except (CorruptRecord, safetensors_file.Broken, OSError) as error:
        return found | {"why": str(error)}, None
    place = f"checkpoints/{name}/{MANIFEST}"
    files = {place: digest_of_file(catalog / run_id / place)}
    return found, Holding(run_id, files, created_of(catalog / run_id / "events.jsonl"))


def _not_there(catalog: Path, run_id: str, checkpoint: Path) -> str | None:
    """Why the checkpoint cannot be compared with. Links are no part of a record."""
    run = Run(catalog / run_id)
    if run.path.is_symlink() or not run.events.is_file():
        removed = lineage.tombstone(catalog, run_id)
        return "that run was removed, with its checkpoints" if removed else "there is no such run here"
    if any(folder.is_symlink() or not folder.is_dir() for folder in (run.checkpoints, checkpoint)):
        return "that run has no such checkpoint (any more)"
    findings = verify_folder(checkpoint)
    return f"that checkpoint is not what was written: {'; '.join(findings[:3])}" if findings else None


def _compared(path: Path, tensors: dict[str, safetensors_file.Tensor], checkpoint: Path) -> dict[str, Any]:
    """With the weights, and where they are others with their moving average; of the two the nearer one counts."""
    best: dict[str, Any] = {}
    for of, average in ((exports.WEIGHTS, False), (exports.AVERAGE, True)):
        try:
            kept = plain_weights.weights(checkpoint, average)
        except UsageError:
            break  # it has no average
        differing = [
            name
            for name in sorted(tensors.keys() | kept.keys())
            if name not in tensors or name not in kept or not _same(path, tensors[name], kept[name])
        ]
        if not best or len(differing) < best["differing"]:
            best = {"of": of, "tensors": len(tensors.keys() | kept.keys()), "differing": len(differing)}
            best["named"] = differing[:MOST_NAMED]
        if not differing:
            break
    return best | {"same": not best["differing"]}


def _same(path: Path, tensor: safetensors_file.Tensor, kept: Whole) -> bool:
    if (tensor.dtype, tensor.shape) != (kept.dtype, kept.shape):
        return False
    return _digest(path, tensor.start, tensor.stop - tensor.start) == _digest_of_whole(kept)


def _digest_of_whole(whole: Whole) -> str:
    """Of a tensor in one piece as it stands in its file; of others, put together in a file of its size."""
    match whole.pieces:
        case [Piece(file, start, size, _)] if size == whole.shape:
            return _digest(file, start, whole.bytes)
    with tempfile.NamedTemporaryFile(prefix="lockstep-explain-") as together:
        if whole.bytes:
            os.posix_fallocate(
                together.fileno(), 0, whole.bytes
            )  # a full disk is an error here, no SIGBUS there
        plain_weights.fill(Path(together.name), 0, whole)
        return _digest(Path(together.name), 0, whole.bytes)


def _digest(path: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    with open_plain(path) as file:
        file.seek(start)
        while size and (chunk := file.read(min(size, CHUNK_BYTES))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()
