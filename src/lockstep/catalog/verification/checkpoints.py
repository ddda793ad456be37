"""Whether a run's checkpoints and its model for the ecosystem can be loaded, and belong to this run."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lockstep.catalog.finding import Finding
from lockstep.catalog.manifest import differences
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.verification import safetensors_file, torch_file
from lockstep.catalog.verification.record import Record, differs, entries
from lockstep.files import open_plain, read_object

FORMAT = 1
_MODEL = "distributed_model_checkpoint.pt"


def folders(record: Record) -> list[Path]:
    """Every checkpoint of a run, oldest first, and the parent's that it began with."""
    own = [path for path in entries(record.run.checkpoints) if not path.name.startswith(".tmp-")]
    return [*own, *([record.run.start] if record.run.start.is_dir() else [])]


def findings(record: Record, digest: Callable[[Path], str], may_go: bool) -> Iterator[Finding]:
    """All checkpoints. ``may_go``: the run is running, and a checkpoint may be removed while it is looked at."""
    for folder in folders(record):
        found = list(_checkpoint(record, folder, digest))
        if not (may_go and not folder.exists()):
            yield from found


def _checkpoint(record: Record, folder: Path, digest: Callable[[Path], str]) -> Iterator[Finding]:
    name = folder.relative_to(record.run.path).as_posix()
    if folder != record.run.start and not (
        re.fullmatch(r"step-\d{8,}", folder.name) and folder.is_dir() and not folder.is_symlink()
    ):
        yield Finding(name, "is no checkpoint's folder: it was added")
        return
    try:
        for each in differences(folder, digest):
            yield Finding(f"{name}/{each.file}", each.problem)
    except OSError as error:
        yield Finding(name, f"cannot be looked into: {error.strerror}")
        return
    for file in entries(folder):
        if file.suffix == ".safetensors":
            try:
                safetensors_file.read_header(file)
            except safetensors_file.Broken as error:
                yield Finding(f"{name}/{file.name}", f"cannot be loaded: it {error}")
            except OSError:
                continue  # named above
    yield from _state(record, folder, name)


def _state(record: Record, folder: Path, name: str) -> Iterator[Finding]:
    state, where = read_object(folder / "state.json"), f"{name}/state.json"
    step = state.get("step")
    if state.get("format") != FORMAT or type(step) is not int:
        yield Finding(where, "cannot be loaded: it has no step and format that are known")
        return
    parameters = record.parameters
    if folder == record.run.start:
        parent = mapping(record.created.get("parent"))
        if (
            re.fullmatch(r"step-\d+", str(parent.get("checkpoint")))
            and parent["checkpoint"] != f"step-{step:08d}"
        ):
            yield differs(where, "the step is", step, "events.jsonl", parent["checkpoint"])
        return
    if folder.name != f"step-{step:08d}":
        yield differs(where, "the step is", step, "the folder's name", folder.name)
    maker = at(state, "made_by", "run_id")
    if maker != record.run_id:
        yield differs(where, "it was made by", maker, "events.jsonl", record.run_id)
    pairs = {
        "seed": (state.get("seed"), parameters.get("seed")),
        "precision": (state.get("precision"), at(parameters, "training", "precision")),
        "optimizer": (at(state, "optimizer", "name"), at(parameters, "training", "optimizer", "name")),
        "global_batch_size": (
            state.get("global_batch_size"),
            at(parameters, "training", "global_batch_size"),
        ),
    }
    for key, (found, expected) in pairs.items():
        if found is not None and expected is not None and found != expected:
            yield differs(where, key, found, "parameters.yaml", expected)


def model(record: Record) -> Iterator[Finding]:
    """The .pt file: plain tensors only, and the same bits as the checkpoint of its step, where that is there."""
    path = record.run.model
    if not path.is_file() or path.is_symlink():
        return
    try:
        archive = torch_file.Archive(path)
    except torch_file.Broken as error:
        yield Finding(_MODEL, f"cannot be loaded: it {error}")
        return
    except OSError as error:
        yield Finding(_MODEL, f"cannot be read: {error.strerror}")
        return
    try:
        yield from _same_bits(record, archive)
    except torch_file.Broken as error:
        yield Finding(_MODEL, f"cannot be loaded: it {error}")
    finally:
        archive.close()


def _same_bits(record: Record, archive: torch_file.Archive) -> Iterator[Finding]:
    step = at(archive.value, "step")
    weights = {"model": at(archive.value, "model"), "optimizer": at(archive.value, "optimizer", "state")}
    if type(step) is not int or not all(isinstance(each, dict) for each in weights.values()):
        yield Finding(_MODEL, "cannot be loaded: it has no model, optimizer and step")
        return
    compared: set[str] = set()
    for part, tensors in weights.items():
        file = record.run.checkpoints / f"step-{step:08d}" / f"{part}.safetensors"
        try:
            header = safetensors_file.read_header(file, depth=2)
        except (OSError, safetensors_file.Broken):
            continue  # pruned, or named already
        for name in sorted(header.keys() | tensors.keys(), key=str):
            tensor = tensors.get(name)
            if name not in header or not isinstance(tensor, torch_file.Tensor):
                yield Finding(
                    _MODEL, f"and step-{step:08d}/{file.name} do not both have {part} tensor {name!r}"
                )
            elif tensor.is_whole:
                compared.add(tensor.storage.key)
                if _digest_in_archive(archive, tensor) != _digest_in_file(file, header[name]):
                    yield Finding(_MODEL, f"has other bits of {part} tensor {name!r} than step-{step:08d}")
    for key in archive.storages.keys() - compared:
        archive.read_in_parts(archive.storages[key], len)  # for its checksum


def _digest_in_archive(archive: torch_file.Archive, tensor: torch_file.Tensor) -> str:
    digest = hashlib.sha256()
    archive.read_in_parts(tensor.storage, digest.update)
    return digest.hexdigest()


def _digest_in_file(path: Path, tensor: safetensors_file.Tensor) -> str:
    digest: Any = hashlib.sha256()
    with open_plain(path, depth=2) as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return str(digest.hexdigest())
