"""manifest.json: the digest and size of every file of a folder, written last, and its verification.

A checkpoint's folder holds one, and so does a whole run: the seal (seal.py), which also covers events.jsonl
up to a stated length. Only plain files are vouched for; links are refused and reported, never followed.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lockstep import strict_json
from lockstep.catalog.finding import Finding
from lockstep.errors import LockstepError
from lockstep.files import fsync, fsync_folder, open_plain, printable, read_plain, write_atomically

MANIFEST = "manifest.json"
SIGNATURES = "signatures"
LARGEST_BYTES = 64 << 20  # of a manifest: a third of a million files
_SHA256 = re.compile(r"[0-9a-f]{64}")


def write_manifest(folder: Path) -> dict[str, str]:
    """Write ``manifest.json`` for a finished folder: each file is made durable, then the manifest is.

    Returns the digest of every file by its path in the folder, the manifest's own included. Raises
    LockstepError where the folder holds what a manifest cannot vouch for (a link, a pipe).
    """
    content = manifest_bytes({"algorithm": "sha256", "files": entries(folder, {}, {MANIFEST})})
    write_atomically(folder / MANIFEST, content)
    digests = {name: entry["sha256"] for name, entry in json.loads(content)["files"].items()}
    return {**digests, MANIFEST: hashlib.sha256(content).hexdigest()}


def verify_folder(folder: Path) -> list[str]:
    """What differs between a folder and its manifest, a sentence each that names the file; empty is good.

    For a run, the history is checked as far as the seal covers it; ``seal.verify_seal`` checks the rest.
    """
    return [str(finding) for finding in differences(folder)]


def differences(folder: Path, digest: Callable[[Path], str] | None = None) -> list[Finding]:
    """The same as findings. ``digest`` gives a file's SHA-256 where the caller has it already."""
    manifest, findings = read_manifest(folder)
    if manifest is None:
        return findings
    is_run = "events" in manifest
    leave_out = outside_the_seal(folder) if is_run else {MANIFEST}
    findings = compare(folder, manifest["files"], dict(walk(folder, leave_out)), digest)
    if is_run:
        findings += history_differences(folder, manifest["events"])
    return findings


def read_manifest(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    """A folder's manifest; None and why where there is none that can be used."""
    try:
        content = read_plain(folder / MANIFEST, LARGEST_BYTES)
    except FileNotFoundError:
        return None, [Finding(MANIFEST, "is missing")]
    except OSError as error:
        return None, [Finding(MANIFEST, f"cannot be read: {error.strerror}")]
    manifest = parse_manifest(content)
    if manifest is None:
        return None, [Finding(MANIFEST, "is not as it was written: its own bytes were changed or cut")]
    return manifest, []


def history_differences(folder: Path, sealed: Mapping[str, Any]) -> list[Finding]:
    """What has become of the bytes of events.jsonl that were sealed."""
    covered = sealed["bytes"]
    history = read_up_to(folder / "events.jsonl", covered)
    if len(history) < covered:
        return [Finding("events.jsonl", f"was cut to {len(history)} bytes, of {covered} that were sealed")]
    if hashlib.sha256(history).hexdigest() != sealed["sha256"]:
        return [Finding("events.jsonl", "has other bytes where it was sealed: they have been changed")]
    return []


def manifest_bytes(value: Mapping[str, Any]) -> bytes:
    """A manifest's one form on disk; any other is a finding, so that every byte of it counts."""
    return strict_json.encode(value, indent=1, sort_keys=True).encode() + b"\n"


def parse_manifest(content: bytes) -> dict[str, Any] | None:
    """A manifest in exactly the form that is written; None for anything else."""
    try:
        value = json.loads(content)
        if not isinstance(value, dict) or manifest_bytes(value) != content:
            return None
    except (ValueError, RecursionError):
        return None
    files, history = value.get("files"), value.get("events", {"bytes": 0, "sha256": "0" * 64})
    keys = {"algorithm", "files"} | ({"events", "time"} if "events" in value else set())
    good = (
        value.keys() == keys
        and value["algorithm"] == "sha256"
        and isinstance(value.get("time", ""), str)
        and isinstance(files, dict)
        and all(map(_is_entry, [history, *files.values()]))
    )
    return value if good else None


def entries(folder: Path, known: Mapping[str, str], leave_out: Collection[str]) -> dict[str, Any]:
    """Size and digest of every file, each on disk when this returns; files in ``known`` are not read."""
    files: dict[str, dict[str, Any]] = {}
    folders = {folder}
    for name, status in walk(folder, leave_out):
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a plain file"
            raise LockstepError(
                f"{folder / name} is {kind}: a manifest vouches for plain files only. Replace it by a file"
            )
        digest = known.get(name)
        files[name] = {
            "bytes": status.st_size,
            "sha256": digest if digest else digest_of_file(folder / name, durable=True),
        }
        folders.add((folder / name).parent)
    for each in folders:
        fsync_folder(each)
    return files


def outside_the_seal(folder: Path) -> set[str]:
    """What the seal passes over at a run's top: itself, the history, what lives with the run, signatures.

    The history vouches for the signatures (seal.py).
    """
    left = [name for name in os.listdir(folder) if name.startswith(".live.")]  # noqa: PTH208 - names only
    return {MANIFEST, "events.jsonl", ".live", SIGNATURES, *left}


def walk(folder: Path, leave_out: Collection[str] = ()) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below a folder that is no folder itself: path in it, and lstat. Links are never followed.

    ``leave_out`` names entries at the top that are passed over. A folder that cannot be looked into is an
    entry itself.
    """
    waiting = [("", folder)]
    while waiting:
        prefix, here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if not prefix:
                raise
            yield prefix, here.lstat()
            continue
        for entry in found:
            if not prefix and entry.name in leave_out:
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((f"{prefix}{entry.name}/", Path(entry.path)))
            else:
                yield prefix + entry.name, entry.stat(follow_symlinks=False)


def digest_of_file(path: Path, durable: bool = False) -> str:
    """The SHA-256 of a plain file; ``durable`` also waits until its bytes are on disk.

    Raises OSError for a link, a pipe or anything else that was put in a file's place.
    """
    with open_plain(path) as file:
        if durable:
            fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and type(value["bytes"]) is int
        and value["bytes"] >= 0
        and isinstance(value["sha256"], str)
        and _SHA256.fullmatch(value["sha256"]) is not None
    )


def compare(
    folder: Path,
    files: Mapping[str, Any],
    present: Mapping[str, os.stat_result],
    digest: Callable[[Path], str] | None = None,
) -> list[Finding]:
    """What differs between the entries of a manifest and what ``walk`` found, in the order of names."""
    owners: dict[str, str] = {}
    for name, entry in files.items():
        owners.setdefault(entry["sha256"], name)
    findings = []
    for name in sorted(files.keys() | present.keys()):
        problem = None
        if name not in present:
            folder_there = (folder / name).is_dir() and not (folder / name).is_symlink()
            problem = "is a folder, and was a file" if folder_there else "is missing"
        elif name.endswith("/"):
            problem = "is a folder that cannot be looked into"
        elif name not in files:
            problem = "is not in the manifest: it was added"
        elif not stat.S_ISREG(present[name].st_mode):
            problem = "is a link or no plain file, and was a file"
        else:
            problem = _difference(
                folder / name, files[name], present[name].st_size, owners, digest or digest_of_file
            )
        if problem:
            findings.append(Finding(name, problem))
    return findings


def _difference(
    path: Path, entry: dict[str, Any], size: int, owners: dict[str, str], digest_of: Callable[[Path], str]
) -> str | None:
    try:
        digest = digest_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest == entry["sha256"] and size == entry["bytes"]:
        return None
    if digest in owners and digest != entry["sha256"]:
        return f"holds what the manifest has for {printable(owners[digest])}: the two were swapped"
    if size != entry["bytes"]:
        return f"has {size:,} bytes instead of {entry['bytes']:,}"
    return "holds other bytes than were written"


def read_up_to(path: Path, limit: int | None) -> bytes:
    """The first bytes of a plain file, all without a limit; none where it cannot be read."""
    try:
        with open_plain(path) as file:
            return file.read(-1 if limit is None else limit)
    except OSError:
        return b""
