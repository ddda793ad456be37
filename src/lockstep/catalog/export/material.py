"""What a record says, gathered once for every format: facts, and digests of the bytes as they are now.

A statement about files is only made after reading them: where bytes are not what a manifest in the record says,
nothing is exported.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from lockstep.catalog import events, lineage, run_parameters, status
from lockstep.catalog.manifest import MANIFEST, read_manifest
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.values import at, mapping, moment
from lockstep.catalog.run import Run
from lockstep.errors import CorruptRecord, LockstepError, UsageError
from lockstep.files import open_inside, printable, read_object

MODEL = "distributed_model_checkpoint.pt"
HISTORY = "events.jsonl"
ALONE = (
    *("parameters.yaml", "provenance.json", "source.patch", "uv.lock", "distributed.json", MODEL),
    *("distributed_training_results.json", "report.html", "run_log.json", MANIFEST),
)
FOLDERS = ("data", "start", "metrics", "logs")
_CHECKPOINT = re.compile(r"step-[0-9]{1,20}")


@dataclass(frozen=True)
class File:
    """A file of the run by its path in the folder, as it was found."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Material:
    """All that is recorded of a run. Values come from files that anybody may have written: no type is sure."""

    run: Run
    state: status.Status
    history: list[dict[str, Any]]
    created: dict[str, Any]
    parent: dict[str, Any]
    provenance: dict[str, Any]
    results: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    parameters: dict[str, Any]
    seal: dict[str, Any] | None

    @property
    def uuid(self) -> str:
        """The run's identity elsewhere: the same for every copy of its folder and after every resume."""
        first = next((event for event in self.history), {})
        words = f"{self.run.run_id} {first.get('time')} {first.get('previous')}"
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:lockstep:run:{words}"))

    @property
    def began(self) -> float | None:
        """When the first attempt started (else: when the run was made), in seconds since 1970."""
        times = [moment(event.get("time")) for event in self.history if event["event"] == "started"]
        return next((time for time in times if time is not None), moment(self.created.get("time")))

    @property
    def ended(self) -> float | None:
        """When the last attempt ended, as far as its history tells; None while it is running."""
        if self.state.word in ("running", "unknown"):
            return None
        attempts = told_by(self.history).attempts
        last = attempts[-1].last if attempts else moment(self.history[-1].get("time"))
        ended = last or moment(self.state.finished)
        # A clock that was set back, in a record that has no other: an end before the start means nothing.
        return ended if ended is None or self.began is None else max(ended, self.began)

    @property
    def summary(self) -> dict[str, Any]:
        """Dataset, model, strategy and world size, where they are text and a number."""
        found = mapping(self.created.get("summary"))
        return {key: value for key, value in found.items() if isinstance(value, str | int)}


def gather(run: Run) -> Material:
    """Read a run's record. Raises UsageError where its history says nothing at all."""
    history = events.read(run)
    if not history:
        raise UsageError(f"run {run.shown} cannot be exported: no event of its history can be read")
    manifest, _ = read_manifest(run.path)
    return Material(
        run=run,
        state=status.of(run),
        history=history,
        created=next((event for event in history if event["event"] == "created"), {}),
        parent=lineage.parent_of(run),
        provenance=read_object(run.provenance),
        results=read_object(run.results),
        plan=read_object(run.plan),
        data=read_object(run.data / "data.json", depth=2),
        parameters=run_parameters.nested(run),
        seal=manifest if manifest and "events" in manifest else None,
    )


def refuse_unfinished(material: Material, what: str) -> None:
    """Raise UsageError for a run that is going on, or of which that cannot be told here."""
    if material.state.word == "running":
        raise UsageError(f"run {material.run.shown} is running: {what} is made after its end")
    if material.state.word == "unknown":
        raise UsageError(f"run {material.run.shown}: {material.state.message}: {what} is made after its end")


def files(material: Material) -> list[File]:
    """Every file of the run with the digest of its bytes, in the order of their names.

    Raises CorruptRecord where they are not what the seal, or the manifest of a checkpoint, says.
    """
    folder = material.run.path
    expected = _expected(material)
    names = set(_present(folder)) | set(expected)
    return [_file(folder, name, expected.get(name)) for name in sorted(names)]


def checkpoints(found: Iterable[File]) -> dict[str, list[File]]:
    """The files of each checkpoint, by its name."""
    grouped: dict[str, list[File]] = {}
    for file in found:
        parts = PurePosixPath(file.name).parts
        if len(parts) >= 3 and parts[0] == "checkpoints":
            grouped.setdefault(parts[1], []).append(file)
    return grouped


def timestamp(seconds: float | None) -> str | None:
    """A moment in RFC 3339, in UTC, to the microsecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def figures(material: Material) -> dict[str, Any]:
    """The run's result in a few numbers, the final model's by split."""
    final = mapping(at(material.results, "evaluation", "final"))
    training = mapping(material.results.get("training"))
    found = {
        f"{split}_{key}": at(final, split, key)
        for split in ("validation", "test")
        for key in ("accuracy", "loss")
    } | {key: training.get(key) for key in ("samples_per_second", "seconds")}
    return {name: value for name, value in found.items() if value is not None}


def _expected(material: Material) -> dict[str, str]:
    """Digests that the record vouches for: by the seal, else each checkpoint's by its own manifest."""
    if material.seal is not None:
        return {name: entry["sha256"] for name, entry in material.seal["files"].items()}
    found = {}
    for name in _checkpoint_names(material.run.path):
        manifest, findings = read_manifest(material.run.checkpoints / name)
        if manifest is None:
            raise CorruptRecord(f"checkpoints/{name}: {'; '.join(map(str, findings))}. Nothing was exported")
        for inner, entry in manifest["files"].items():
            found[f"checkpoints/{name}/{inner}"] = entry["sha256"]
    return found


def _checkpoint_names(folder: Path) -> list[str]:
    place = folder / "checkpoints"
    if place.is_symlink() or not place.is_dir():
        return []
    return sorted(path.name for path in place.iterdir() if _CHECKPOINT.fullmatch(path.name))


def _present(folder: Path) -> list[str]:
    """The files that a record consists of, where they are plain ones."""
    found = [name for name in ALONE if _is_plain(folder / name)]
    places = [*FOLDERS, *(f"checkpoints/{name}" for name in _checkpoint_names(folder))]
    for place in places:
        path = folder / place
        if not path.is_symlink() and path.is_dir():
            found += [f"{place}/{each.name}" for each in path.iterdir() if _is_plain(each)]
    return found


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _file(folder: Path, name: str, expected: str | None) -> File:
    try:
        with open_inside(folder, name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise CorruptRecord(f"{printable(name)} {error.strerror}. Nothing was exported") from None
    if expected is not None and digest != expected:
        raise CorruptRecord(
            f"{printable(name)} holds other bytes than its manifest says. Nothing was exported: "
            f"lockstep verify {Run(folder).typed} says more"
        )
    return File(name.encode("utf-8", "backslashreplace").decode(), digest, size)


def nothing_to_say(material: Material, what: str) -> LockstepError:
    """The error of a format that speaks of checkpoints, for a run that has none."""
    return UsageError(f"run {material.run.shown} has no checkpoint and no model: {what} would say nothing")
