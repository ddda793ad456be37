"""A checkpoint that every rank writes its own slices of, committed as one: see docs/adr/0009.

Nothing is agreed on but by sums over the ranks, which all of them enter: one before the first byte is written,
so that the folder is there, and one after the last, which carries the digests. Only when that one is done, and so
every file of every rank is on disk, rank 0 writes the manifest and gives the folder its name.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lockstep import full_disk, strict_json
from lockstep.catalog.manifest import (
    MANIFEST,
    compare,
    digest_of_file,
    entries,
    manifest_bytes,
    read_manifest,
    verify_folder,
    walk,
)
from lockstep.engine.checkpoint import FORMAT, WHOLE, folder_name, remove, storable
from lockstep.engine.contents import PARTS, file_name, header
from lockstep.errors import CorruptRecord
from lockstep.files import fsync_folder, set_mode, write_atomically
from lockstep.strategies._state import Slice, Slices

_WORDS = 4  # of 64 bits in a SHA-256


@dataclass(frozen=True)
class Ranks:
    """The ranks that write together, as one of them sees it; ``total`` sums a small tensor over all, in place."""

    rank: int
    world_size: int
    total: Callable[[Tensor], Tensor]


def save(checkpoints: Path, slices: Slices, meta: dict[str, Any], ranks: Ranks) -> Path:
    """Commit a checkpoint of ``meta["step"]`` updates with all other ranks; each of them calls it.

    An existing valid one of that step is kept as it is. ``meta`` is rank 0's. Returns when every rank's slices are
    on disk, and on rank 0 when the checkpoint is committed. Raises RunFailed on a full disk; a rank that raises or
    dies leaves the others waiting for it, which its death ends.
    """
    target = checkpoints / folder_name(meta["step"])
    temporary = checkpoints / f".tmp-{target.name}-of-{ranks.world_size}"
    standing = torch.zeros(1)
    if ranks.rank == 0:
        standing[0] = float(_stands(target))
        if not standing:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(mode=0o755)
    if float(ranks.total(standing)):
        return target
    try:
        digests = _exchanged(_write(temporary, slices, ranks), ranks)
        if ranks.rank == 0:
            _commit(temporary, target, meta, digests)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # which lets the others fail, if nothing else does
        if isinstance(error, (OSError, SafetensorError)):
            needed = sum(one.data.nbytes for part in slices.values() for one in part.values())
            raise full_disk.explained(error, target, needed, WHOLE) or error from error
        raise
    return target


def _stands(target: Path) -> bool:
    """Whether a valid checkpoint is there already; a damaged one goes."""
    if not target.exists():
        return False
    if not verify_folder(target):
        return True
    remove(target)
    return False


def _write(folder: Path, slices: Slices, ranks: Ranks) -> dict[str, str]:
    """This rank's files, made durable and compared with memory; the SHA-256 of each, by name."""
    digests = {}
    for part in PARTS:
        own = {name: one for name, one in slices.get(part, {}).items() if one.data.numel() or not _full(one)}
        if not own:
            continue
        path = folder / file_name(part, ranks.rank, ranks.world_size)
        tensors = storable({name: one.data for name, one in own.items()})
        save_file(tensors, path, metadata=header(own))
        set_mode(path, 0o644)
        digests[path.name] = digest_of_file(path, durable=True)
        _compare(path, tensors)
    return digests


def _full(one: Slice) -> bool:
    """Whether the whole tensor has elements, so that a slice without any says nothing."""
    return all(one.shape)


def _compare(path: Path, tensors: dict[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            if not torch.equal(_bytes(found), _bytes(tensor)):
                raise CorruptRecord(f"{path} did not read back as written: {name} differs")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _exchanged(own: dict[str, str], ranks: Ranks) -> dict[str, str]:
    """The digests of all ranks' files: each adds its own to a table of zeros. Integers, so that every bit is kept."""
    table = torch.zeros(ranks.world_size, len(PARTS), 1 + _WORDS, dtype=torch.int64)
    for number, part in enumerate(PARTS):
        digest = own.get(file_name(part, ranks.rank, ranks.world_size))
        if digest is not None:
            words = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.int64)
            table[ranks.rank, number, 0] = 1
            table[ranks.rank, number, 1:] = words
    ranks.total(table)
    return {
        file_name(part, rank, ranks.world_size): table[rank, number, 1:].numpy().tobytes().hex()
        for rank in range(ranks.world_size)
        for number, part in enumerate(PARTS)
        if table[rank, number, 0]
    }


def _commit(temporary: Path, target: Path, meta: dict[str, Any], digests: dict[str, str]) -> None:
    """What one process does for all: the manifest last, then the name."""
    text = strict_json.encode({"format": FORMAT, **meta}, indent=2)
    (temporary / "state.json").write_text(text + "\n", encoding="utf-8")  # made durable by the manifest
    files = entries(temporary, digests, {MANIFEST})
    if missing := digests.keys() - files.keys():
        raise CorruptRecord(
            f"checkpoint {target.name}: {', '.join(sorted(missing))} is gone before it was committed"
        )
    write_atomically(temporary / MANIFEST, manifest_bytes({"algorithm": "sha256", "files": files}))
    fsync_folder(temporary)
    temporary.rename(target)
    fsync_folder(target.parent)
    # Each rank has read its own files back. What is left to see is that the manifest is as written, and all there.
    manifest, findings = read_manifest(target)
    if manifest is not None:
        present = dict(walk(target, {MANIFEST}))
        findings += compare(target, manifest["files"], present, lambda path: files[path.name]["sha256"])
    if findings:
        raise CorruptRecord(
            f"checkpoint {target} did not read back as written: {'; '.join(map(str, findings))}"
        )
