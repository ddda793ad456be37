"""Large inputs, kept once: ``.catalog/.store/<sha256>``, read-only, hard-linked into the runs.

Also an index from an identity (a digest of what makes the data: dataset, options, seed) to a JSON value.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from pathlib import Path
from typing import Any

from lockstep import full_disk
from lockstep.errors import CorruptRecord
from lockstep.files import fsync, fsync_folder, read_json, set_mode, sha256_of, temporary_beside, write_json

_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)


def folder(catalog: Path) -> Path:
    """Where the catalog keeps its inputs."""
    return catalog / ".store"


def put(catalog: Path, file: Path) -> str:
    """Move a finished file into the store and return its digest. Safe beside others that put the same."""
    digest = sha256_of(file)
    stored = folder(catalog) / digest
    stored.parent.mkdir(parents=True, exist_ok=True)
    if _is_whole(stored, digest):
        file.unlink()
        return digest
    _make_durable(file)
    try:
        file.replace(stored)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(file, stored)
        file.unlink()
    fsync_folder(stored.parent)
    return digest


def link(catalog: Path, digest: str, target: Path) -> None:
    """Give stored bytes a name in a run: a hard link, or a copy where links fail. Replaces what stands there.

    Raises CorruptRecord, naming the file, where the stored bytes are absent or not what their digest says; a
    bad copy is removed, so that preparing the data again makes it anew.
    """
    assert _SHA256.fullmatch(digest), digest
    stored = folder(catalog) / digest
    if not _is_whole(stored, digest):
        if not os.path.lexists(stored):
            raise CorruptRecord(f"{stored} is missing: the data has to be prepared again")
        stored.unlink()
        raise CorruptRecord(f"{stored} did not hold the bytes of its digest, and was removed")
    temporary = target.parent / f".tmp-{target.name}-{secrets.token_hex(6)}"
    try:
        os.link(stored, temporary, follow_symlinks=False)
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(stored, target)
    finally:
        # A rename between two links to the same file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)
    fsync_folder(target.parent)


def remember(catalog: Path, identity: str, value: dict[str, Any]) -> None:
    """Keep a value under an identity, replacing an earlier one."""
    path = _identity_file(catalog, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def recall(catalog: Path, identity: str) -> dict[str, Any] | None:
    """The value kept under an identity; None where there is none, or none that can be read."""
    try:
        value = read_json(_identity_file(catalog, identity))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _identity_file(catalog: Path, identity: str) -> Path:
    assert _IDENTITY.fullmatch(identity), identity
    return folder(catalog) / "identities" / f"{identity}.json"


def _is_whole(stored: Path, digest: str) -> bool:
    try:
        return stat.S_ISREG(stored.lstat().st_mode) and sha256_of(stored) == digest
    except OSError:
        return False


def _make_durable(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_mode(descriptor, 0o444)
        fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    with full_disk.needing(target, source.stat().st_size), temporary_beside(target) as temporary:
        shutil.copyfile(source, temporary)
        _make_durable(temporary)
        temporary.replace(target)
