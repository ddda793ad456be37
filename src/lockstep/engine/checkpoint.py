"""Checkpoints: folders that are whole or absent, verified before they are read, and free of how they were made.

Commit protocol: write into a sibling `.tmp-` folder, fsync each file, write the manifest (path, size,
SHA-256) last, fsync the folder, rename, fsync the parent, and read it all back. Nothing is overwritten.
"""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lockstep import full_disk, strict_json
from lockstep.catalog.seal import verify_folder, write_manifest
from lockstep.engine.contents import Contents, header_of_pairs, stored_as_pairs
from lockstep.errors import CorruptRecord
from lockstep.files import fsync_folder, read_json, set_mode
from lockstep.strategies._state import State

__all__ = ["FORMAT", "Checkpoint", "State", "newest", "open_verified", "prune", "save", "sweep"]

WHOLE = "The earlier checkpoints are whole. "  # what a full disk has left
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk: ``meta`` is its state.json, tensors are read when asked for."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.meta["step"])

    def contents(self) -> Contents:
        """Its tensors, to be read block by block; close it afterwards."""
        return Contents(self.path)

    def tensors(self) -> State:
        """Model and optimizer, and what the strategy added, whole: mapped from the files where those hold them so."""
        with contextlib.closing(self.contents()) as contents:
            return contents.whole()


def folder_name(step: int) -> str:
    """step-00000120."""
    return f"step-{step:08d}"


def save(checkpoints: Path, state: State, meta: dict[str, Any]) -> Path:
    """Commit a checkpoint of ``meta["step"]`` updates; an existing valid one of that step is kept as it is."""
    target = checkpoints / folder_name(meta["step"])
    if target.exists():
        if not verify_folder(target):
            return target
        remove(target)  # damaged: what is written now replaces it
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=checkpoints))
    try:
        for part, tensors in state.items():
            file = temporary / f"{part}.safetensors"
            save_file(storable(tensors), file, metadata=header_of_pairs(tensors) or None)
            set_mode(file, 0o644)
        text = strict_json.encode({"format": FORMAT, **meta}, indent=2)
        (temporary / "state.json").write_text(
            text + "\n", encoding="utf-8"
        )  # made durable with the others, by the manifest
        set_mode(temporary, 0o755)
        write_manifest(temporary)
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        needed = sum(t.nbytes for part in state.values() for t in part.values())
        raise full_disk.explained(error, target, needed, WHOLE) or error from error
    fsync_folder(checkpoints)
    findings = verify_folder(target)
    if findings:
        raise CorruptRecord(f"checkpoint {target} did not read back as written: {'; '.join(findings)}")
    return target


def storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors accepts: contiguous, on the CPU, of a type that it has, and none sharing memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if stored_as_pairs(plain):
            plain = torch.view_as_real(plain)
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result


def newest(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a message for each newer one that does not."""
    passed_over: list[str] = []
    for path in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            return open_verified(path), passed_over
        except CorruptRecord as error:
            passed_over.append(f"passed over: {error}")
    return None, passed_over


def open_verified(path: Path) -> Checkpoint:
    """A checkpoint whose every byte was compared with its manifest; CorruptRecord names what differs."""
    findings = verify_folder(path)
    if findings:
        raise CorruptRecord(f"checkpoint {path.name} is damaged ({'; '.join(findings)})")
    try:
        meta = read_json(path / "state.json")
        if meta["format"] != FORMAT:
            raise CorruptRecord(
                f"checkpoint {path.name} has format {meta['format']}; this version reads {FORMAT}"
            )
        int(meta["step"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptRecord(f"checkpoint {path.name} has no usable state.json ({error!r})") from None
    return Checkpoint(path, meta)


def prune(checkpoints: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest ``keep`` and the best. Only names go first, so no half-removed one is seen."""
    steps = sorted(path for path in checkpoints.glob("step-*"))
    for path in steps[:-keep]:
        if best_step is None or path.name != folder_name(best_step):
            remove(path)


def sweep(checkpoints: Path) -> None:
    """Remove what a killed writer left. Only one process writes a run, so nothing here is in use."""
    for path in checkpoints.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """A checkpoint goes by its name first, so that no half-removed one is seen."""
    doomed = path.with_name(f".tmp-removed-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)
