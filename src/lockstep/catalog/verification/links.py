"""The cross-links of a record: what one file says of another must be so."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lockstep.catalog.finding import Finding
from lockstep.catalog.manifest import digest_of_file
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run, is_name
from lockstep.catalog.verification.record import Record, brief, differs, entries, strategy_of
from lockstep.files import digest_of, read_object

_OBJECTS = (
    "provenance.json",
    "distributed.json",
    "distributed_training_results.json",
    "run_log.json",
    "data/data.json",
)
_PROVENANCE = re.compile(r"provenance(\.attempt-\d{1,6})?\.json")
Digest = Callable[[Path], str]
SPLITS = ("train", "validation", "test")


def findings(record: Record, digest: Digest) -> Iterator[Finding]:
    """All that contradicts each other, file by file."""
    for name in _OBJECTS:
        path = record.run.path / name
        if path.is_file() and not path.is_symlink() and not read_object(path, depth=name.count("/") + 1):
            yield Finding(name, "is no JSON object that can be read")
    if record.run.parameters.is_file() and not record.parameters:
        yield Finding("parameters.yaml", "is no YAML mapping that can be read")
    yield from _vouched(record, digest)
    yield from _identity(record)
    yield from _origin(record, digest)
    yield from _code(record, digest)
    yield from _plan(record)
    yield from _data(record, digest)


def vouched_for(record: Record) -> dict[str, str]:
    """The digests that the history itself states: of the parameters, and of each attempt's provenance."""
    found = {}
    for event in record.history:
        match event:
            case {"event": "started", "parameters_sha256": str(digest)}:
                found[record.run.parameters.name] = digest
            case {"event": "described", "file": str(name), "sha256": str(digest)} if _PROVENANCE.fullmatch(
                name
            ):
                found[name] = digest
    return found


def _vouched(record: Record, digest: Digest) -> Iterator[Finding]:
    for name, stated in vouched_for(record).items():
        try:
            found = digest(record.run.path / name)
        except OSError:
            yield Finding(name, "is missing or no plain file, and the history states its digest")
            continue
        if found != stated:
            yield Finding(name, "holds other bytes than those whose digest the history states")


def _identity(record: Record) -> Iterator[Finding]:
    run_id = record.created.get("run_id")
    if not record.created:
        yield Finding("events.jsonl", "does not say how the run was created")
        return
    if not isinstance(
        run_id, str
    ):  # another name than the folder's is a note: whoever has a run may rename it
        yield differs("events.jsonl", "the run is", run_id, "the folder's name", record.run.run_id)
    places = [("distributed_training_results.json", record.results), ("run_log.json", record.run_log)]
    places += [(path.name, read_object(path)) for path in _provenances(record.run)]
    for name, value in places:
        if value and value.get("run_id") != run_id:
            yield differs(name, "the run is", value.get("run_id"), "events.jsonl", run_id)
    summary = mapping(record.created.get("summary"))
    said = {
        "dataset": at(record.parameters, "data", "name"),
        "model": at(record.parameters, "model", "name"),
        "strategy": strategy_of(at(record.parameters, "distributed", "strategy")).get("name"),
        "world_size": at(record.parameters, "distributed", "world_size"),
    }
    for key, value in said.items() if record.parameters else ():
        for name, where in (("events.jsonl", summary), ("distributed_training_results.json", record.results)):
            if key in where and where[key] != value:
                yield differs(name, key, where[key], "parameters.yaml", value)


def _provenances(run: Run) -> list[Path]:
    return [path for path in entries(run.path) if _PROVENANCE.fullmatch(path.name)]


def _origin(record: Record, digest: Digest) -> Iterator[Finding]:
    """Where the run came from, as four files say it: the history, provenance, start/ and the parent itself."""
    parent, start = record.created.get("parent"), record.run.start
    if record.provenance and record.provenance.get("parent") != parent:
        yield differs(
            "provenance.json", "the parent is", record.provenance.get("parent"), "events.jsonl", parent
        )
    if not isinstance(parent, dict):
        if start.is_dir():
            yield Finding(
                "start", "holds a parent's checkpoint, and events.jsonl says that there is no parent"
            )
        return
    expected = parent.get("manifest_sha256")
    if not isinstance(expected, str):
        return
    try:
        found = digest(start / "manifest.json")
    except OSError:
        yield Finding("start/manifest.json", "is missing: the run began with this checkpoint of its parent")
        return
    if found != expected:
        yield differs("start/manifest.json", "by its digest", found, "events.jsonl", expected)
    kept = _of_parent(record.run, parent, digest)
    if kept is not None and kept != expected:
        problem = (
            f"says that the run began with {brief(parent.get('checkpoint'))} of {brief(parent.get('run_id'))}, "
            "and that run has another checkpoint of this name"
        )
        yield Finding("events.jsonl", problem)


def _of_parent(run: Run, parent: dict[str, Any], digest: Digest) -> str | None:
    """The digest of the parent's own manifest of that checkpoint, where parent and checkpoint are there."""
    run_id, checkpoint = parent.get("run_id"), parent.get("checkpoint")
    if not (isinstance(run_id, str) and is_name(run_id)):
        return None
    if not (isinstance(checkpoint, str) and re.fullmatch(r"step-[0-9]{1,12}|start", checkpoint)):
        return None
    folder = run.catalog / run_id / ("" if checkpoint == "start" else "checkpoints") / checkpoint
    try:
        return digest(folder / "manifest.json")
    except OSError:
        return None


def _code(record: Record, digest: Digest) -> Iterator[Finding]:
    """The digests that provenance.json states of the patch and of uv.lock, of every attempt."""
    for path in _provenances(record.run):
        value = read_object(path)
        lock = mapping(value.get("uv_lock"))
        patch = mapping(at(value, "git", "patch"))
        lock_name = path.name.replace("provenance", "uv", 1).replace(".json", ".lock")  # uv.attempt-2.lock
        for name, stated in (
            (lock_name, lock.get("sha256")),
            (str(patch.get("file")), patch.get("sha256")),
        ):
            if stated is None:
                continue
            if "/" in name or name in (".", ".."):
                yield Finding(path.name, f"names {brief(name)} as its patch, which is no file of the run")
                continue
            try:
                found = digest(record.run.path / name)
            except OSError:
                yield Finding(name, f"is missing, and {path.name} tells of it")
                continue
            if found != stated:
                yield differs(path.name, f"of {name} the digest", stated, "the file itself", found)


def _plan(record: Record) -> Iterator[Finding]:
    plan, parameters = record.plan, record.parameters
    if not plan or not parameters:
        return
    wanted = mapping(parameters.get("distributed"))
    pairs = {
        "world_size": wanted.get("world_size"),
        **(
            {"backend": wanted.get("backend")} if plan.get("device", "cpu") == "cpu" else {}
        ),  # on GPUs it is NCCL
        "start_method": wanted.get("start_method"),
        "global_batch_size": at(parameters, "training", "global_batch_size"),
    }
    for key, value in pairs.items():
        if key in plan and plan[key] != value:
            yield differs("distributed.json", key, plan[key], "parameters.yaml", value)
    planned, asked = strategy_of(plan.get("strategy")), strategy_of(wanted.get("strategy"))
    if planned and any(planned.get(key) != value for key, value in asked.items()):
        yield differs("distributed.json", "strategy", planned, "parameters.yaml", asked)
    epochs = at(parameters, "training", "epochs")
    steps, each = plan.get("steps"), plan.get("steps_per_epoch")
    if all(type(n) is int for n in (epochs, steps, each)) and steps != each * epochs:
        yield Finding(
            "distributed.json", f"says {steps} steps, and parameters.yaml {epochs} epochs of {each}"
        )
    splits = mapping(plan.get("splits"))
    for name in SPLITS:
        samples = at(record.data, "files", name, "samples")
        if name in splits and samples is not None and splits[name] != samples:
            yield differs("distributed.json", f"{name} samples", splits[name], "data/data.json", samples)


def _data(record: Record, digest: Digest) -> Iterator[Finding]:
    data: dict[str, Any] = record.data
    made_from = data.get("made_from")
    if not data:
        return
    if made_from is not None and _identity_of(made_from) != data.get("identity"):
        yield Finding(
            "data/data.json", "has an identity that is not the digest of what it says it was made from"
        )
    wanted = mapping(record.parameters.get("data"))
    pairs = {"dataset": wanted.get("name"), "seed": record.parameters.get("seed")}
    pairs |= {key: wanted.get(key) for key in ("validation_fraction", "test_fraction")}
    said: dict[str, Any] = made_from if record.parameters and isinstance(made_from, dict) else pairs
    for key, value in pairs.items():
        if said.get(key) != value:
            yield differs("data/data.json", key, said.get(key), "parameters.yaml", value)
    for name in SPLITS:
        entry, path = mapping(at(data, "files", name)), record.run.data / f"{name}.safetensors"
        try:
            found = digest(path)
        except OSError:
            yield Finding(
                f"data/{name}.safetensors", "is missing or no plain file, and data.json tells of it"
            )
            continue
        if found != entry.get("sha256") or path.stat().st_size != entry.get("bytes"):
            yield differs(
                f"data/{name}.safetensors", "by its digest", found, "data.json", entry.get("sha256")
            )


def _identity_of(made_from: object) -> str:
    try:
        return digest_of(made_from)
    except (ValueError, RecursionError):
        return ""


def sealed_manifests(record: Record, files: dict[str, Any]) -> Iterator[Finding]:
    """Every checkpoint's own manifest against the seal's, and the manifests of earlier attempts."""
    for name in files:
        folder, _, last = name.rpartition("/")
        if last != "manifest.json" or not (folder.startswith("checkpoints/") or folder == "start"):
            continue
        listed = mapping(read_object(record.run.path / name, depth=name.count("/") + 1).get("files"))
        for file, inner in listed.items():
            if files.get(f"{folder}/{file}") != inner:
                yield Finding(name, f"has {brief(file)} otherwise than the seal has it")
    known = {str(event.get("manifest_sha256")) for event in record.history if event["event"] == "sealed"}
    for path in entries(record.run.path):
        if re.fullmatch(r"manifest\.attempt-\d+\.json", path.name):
            try:
                found = digest_of_file(path)
            except OSError:
                found = ""
            if found not in known:
                yield Finding(path.name, "is the manifest of no seal that the history tells of")
