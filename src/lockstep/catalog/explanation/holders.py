"""Which runs hold bytes of a digest."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.catalog import tombstones
from lockstep.catalog.manifest import LARGEST_BYTES, MANIFEST, digest_of_file, walk
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import is_name
from lockstep.files import open_plain, parse_json, read_object, read_plain

_TAIL = 600  # bytes of a history that hold its last line, where that is a seal


@dataclass(frozen=True)
class Target:
    """What is looked for."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True)
class Holding:
    """A run, and its files that hold the bytes, with the digest of each. ``tombstone``: the run was removed."""

    run_id: str
    files: dict[str, str]
    created: str
    tombstone: dict[str, Any] | None = None

    @property
    def made(self) -> bool:
        """Whether the run wrote it, and did not begin with it or share it (its data)."""
        return not all(name.startswith(("start/", "data/")) for name in self.files)

    def state(self, catalog: Path, name: str) -> str:
        """What has become of the file: as it was, changed, missing, removed."""
        if self.tombstone is not None:
            return "removed with its run"
        try:
            found = digest_of_file(catalog / self.run_id / name)
        except OSError:
            return "missing by now"
        return "there, as it was" if found == self.files[name] else "changed since"


def find_holders(catalog: Path, targets: list[Target]) -> list[Holding]:
    """Every run that holds, or by its record held, one of the targets: who made it first, then the oldest first."""
    found = [holding for run_id in run_ids(catalog) if (holding := _in_run(catalog, run_id, targets))]
    living = {holding.run_id for holding in found}
    for path in tombstones.paths(catalog):
        if path.stem not in living and (holding := _in_tombstone(path, targets)):
            found.append(holding)
    return sorted(found, key=lambda each: (not each.made, each.created, each.run_id))


def run_ids(catalog: Path) -> Iterator[str]:
    """The folders of a catalog that are named as runs are."""
    try:
        with os.scandir(catalog) as entries:
            names = [each.name for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return
    yield from (name for name in sorted(names) if is_name(name))


def _in_run(catalog: Path, run_id: str, targets: list[Target]) -> Holding | None:
    folder = catalog / run_id
    files: dict[str, str] = {}
    seal = _content(folder / MANIFEST)
    files |= _listed(seal, targets, "")
    by_digest = {target.sha256: target for target in targets}
    if seal and hashlib.sha256(seal).hexdigest() in by_digest:
        files[MANIFEST] = hashlib.sha256(seal).hexdigest()
    if seal is None or not _ends_in_a_seal(folder / "events.jsonl"):
        files |= _unsealed(folder, targets)
    else:
        files |= _same_size(folder, targets, ["events.jsonl"])
    if not files:
        return None
    return Holding(run_id, files, created_of(folder / "events.jsonl"))


def _listed(content: bytes | None, targets: list[Target], prefix: str) -> dict[str, str]:
    """The files of a manifest that hold a target. The text is searched first: most manifests have none."""
    wanted = {target.sha256 for target in targets}
    if content is None or not any(digest.encode() in content for digest in wanted):
        return {}
    try:
        entries = mapping(mapping(parse_json(content)).get("files"))
    except ValueError:
        return {}
    return {
        prefix + name: entry["sha256"]
        for name, entry in entries.items()
        if mapping(entry).get("sha256") in wanted and ".." not in name.split("/")
    }


def _unsealed(folder: Path, targets: list[Target]) -> dict[str, str]:
    """By the manifests of its checkpoints, and for the rest by size and then by hash."""
    files: dict[str, str] = {}
    try:
        entries = list(walk(folder, {".live"}))
    except OSError:
        return files
    for name, _ in entries:
        if name.endswith("/" + MANIFEST):
            files |= _listed(_content(folder / name), targets, name.removesuffix(MANIFEST))
    return files | _same_size(folder, targets, [name for name, _ in entries if name not in files])


def _same_size(folder: Path, targets: list[Target], names: list[str]) -> dict[str, str]:
    wanted = {target.sha256 for target in targets}
    sizes = {target.size for target in targets}
    files = {}
    for name in names:
        try:
            if (folder / name).lstat().st_size in sizes and (
                digest := digest_of_file(folder / name)
            ) in wanted:
                files[name] = digest
        except OSError:
            continue
    return files


def _ends_in_a_seal(history: Path) -> bool:
    last = _end(history).rstrip(b"\n").rpartition(b"\n")[2]
    return last.startswith((b'{"event": "sealed"', b'{"event": "signed"'))


def _end(path: Path) -> bytes:
    try:
        with open_plain(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read(_TAIL)
    except OSError:
        return b""


def created_of(history: Path) -> str:
    """When a run was made, as its first event says; empty where it cannot be read."""
    try:
        with open_plain(history) as file:
            value = parse_json(file.readline(1 << 16))
    except (OSError, ValueError):
        return ""
    time = mapping(value).get("time")
    return time if isinstance(time, str) else ""


def _content(path: Path) -> bytes | None:
    try:
        return read_plain(path, LARGEST_BYTES)
    except OSError:
        return None


def _in_tombstone(path: Path, targets: list[Target]) -> Holding | None:
    content = _content(path)
    wanted = {target.sha256 for target in targets}
    if content is None or not any(digest.encode() in content for digest in wanted):
        return None
    value = read_object(path)
    files = _listed(content, targets, "")
    for name, key in ((MANIFEST, "manifest_sha256"), ("events.jsonl", "events_sha256")):
        if value.get(key) in wanted:
            files[name] = value[key]
    created = value.get("created")
    return Holding(path.stem, files, created if isinstance(created, str) else "", value) if files else None
