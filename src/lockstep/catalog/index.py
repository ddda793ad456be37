"""A cache beside the runs, so that ten thousand of them are listed without opening ten thousand files.

The folders are the truth. An entry counts only while the files that it was read from have the same inode,
size and times as then; files that changed a moment ago are not cached at all, because the clock may not tell
the next change from the last. A run that ends notes its own entry, a line at the end of a second file, so that
not even the first listing opens what has ended; the next cache that is written takes the notes in. Whatever is
wrong with a cache, it is as if it were not there. Deleting it costs the time of one slower listing.
See docs/adr/0008-a-cache-for-lists.md.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lockstep import __version__, strict_json
from lockstep.catalog.side_by_side import WORTH_A_PROCESS, each
from lockstep.files import parse_json, read_plain, set_mode, temporary_beside

FORMAT = 3
LARGEST_BYTES = 512 << 20
SETTLED_SECONDS = 2.0  # a file's times are coarser than its changes: younger ones may change unseen
WORTH_WRITING = 32  # entries read anew or noted; fewer cost less to read again than the cache costs to write

Entry = list[Any]
"""The signature of the files, then what was read from them."""


class Index:
    """Entries of one kind by run id, for one catalog. Reads at once; ``close`` writes when it is worth it."""

    def __init__(self, catalog: Path, kind: str, settled_before: float, good: Callable[[Any], bool]) -> None:
        self._path = catalog / f".index-{kind}"
        self._kind = kind
        self._settled_before = settled_before - SETTLED_SECONDS
        self._good = good
        self._noted = _notes(catalog, kind)
        self._old = {**self._load(), **self._noted}
        self._new: dict[str, Entry] = {}
        self._looked: dict[str, tuple[str, float]] = {}  # what `signature_of` gave, until it is asked for
        self._ahead: dict[str, Any] = {}  # what was read after that
        self._added = 0

    def get(self, run_id: str, files: tuple[str, ...], read: Callable[[], Any]) -> Any:
        """What ``read`` gives for a run, or gave when these files were as they are now."""
        looked = self._looked.pop(run_id) if run_id in self._looked else signature_of(files)
        signature, youngest = looked
        asked_before = self._new.get(run_id)
        entry = asked_before or self._old.get(run_id)
        if self._counts(entry, signature, youngest):
            assert entry is not None
            self._new[run_id] = entry
            self._added += asked_before is None and run_id in self._noted
            return entry[1]
        # Read after the signature was taken: what changes between the two no longer fits it.
        value = self._ahead.pop(run_id) if run_id in self._ahead else read()
        if youngest < self._settled_before:
            self._new[run_id] = [signature, value]
            self._added += 1
        return value

    def _counts(self, entry: Any, signature: str, youngest: float) -> bool:
        return (
            type(entry) is list
            and len(entry) == 2
            and entry[0] == signature
            and youngest < self._settled_before
            and self._good(entry[1])
        )

    def read_ahead(self, files: Mapping[str, tuple[str, ...]], read: Callable[[str], Any]) -> None:
        """Look at all that ``get`` will be asked for; much that is new is read by several processes."""
        self._looked = {run_id: signature_of(own) for run_id, own in files.items()}
        wanted = [
            run_id
            for run_id, looked in self._looked.items()
            if not self._counts(self._old.get(run_id), *looked)
        ]
        if len(wanted) >= WORTH_A_PROCESS:
            self._ahead = dict(zip(wanted, each(read, wanted), strict=True))

    def close(self) -> None:
        """Write the entries of this pass, where many are new. A catalog that cannot be written is left alone."""
        if self._added < WORTH_WRITING:
            return
        with contextlib.suppress(OSError, ValueError):
            # Another user's catalog gets no files of ours, which that user could not replace.
            if self._path.parent.stat().st_uid == os.geteuid():
                self._write()
                _notes_file(self._path.parent, self._kind).unlink(missing_ok=True)

    def _write(self) -> None:
        body = strict_json.encode(self._new, separators=(",", ":")).encode()
        head = json.dumps({**self._head(), "sha256": hashlib.sha256(body).hexdigest()}).encode()
        with temporary_beside(self._path) as temporary:
            temporary.write_bytes(head + b"\n" + body)
            set_mode(temporary, 0o644)
            temporary.replace(self._path)

    def _load(self) -> Mapping[str, Entry]:
        try:
            head, _, body = read_plain(self._path, LARGEST_BYTES).partition(b"\n")
            found = parse_json(head)
            if found != {**self._head(), "sha256": hashlib.sha256(body).hexdigest()}:
                return {}
            entries = parse_json(body)
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _head(self) -> dict[str, Any]:
        return _head(self._kind)


def note(catalog: Path, kind: str, run_id: str, files: tuple[str, ...], value: Any) -> None:
    """Add the entry of a run that has just ended, from the process that still holds its lock: nobody else writes it.

    One write of one line, so that runs which end together do not mix theirs. What cannot be written is left out.
    """
    signature, _ = signature_of(files)
    with contextlib.suppress(OSError, ValueError):
        line = strict_json.encode([_head(kind), run_id, [signature, value]], separators=(",", ":"))
        path = _notes_file(catalog, kind)
        if catalog.stat().st_uid != os.geteuid():
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


def _notes_file(catalog: Path, kind: str) -> Path:
    return catalog / f".index-{kind}.new"


def _notes(catalog: Path, kind: str) -> dict[str, Entry]:
    """What runs have noted since the cache was written; the last line of each counts, and torn ones do not."""
    try:
        lines = read_plain(_notes_file(catalog, kind), LARGEST_BYTES).splitlines()
    except (OSError, ValueError):
        return {}
    found, head = {}, _head(kind)
    for said in _values(lines):
        if type(said) is list and len(said) == 3 and said[0] == head and type(said[1]) is str:
            found[said[1]] = said[2]
    return found


def _values(lines: list[bytes]) -> list[Any]:
    """The lines that are JSON: all of them in one go, which is five times as fast, unless one is torn."""
    with contextlib.suppress(ValueError):
        together = parse_json(b"[" + b",".join(lines) + b"]")
        if len(together) == len(lines):
            return list(together)
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(parse_json(line))
    return found


def _head(kind: str) -> dict[str, Any]:
    return {"index": kind, "format": FORMAT, "lockstep": __version__}


def signature_of(files: tuple[str, ...]) -> tuple[str, float]:
    """What changes when the files do, and the time of their last change in seconds since 1970."""
    parts = []
    youngest = 0
    for file in files:
        try:
            found = os.lstat(file)
        except (OSError, ValueError):
            parts.append("-")
            continue
        kind = "" if stat.S_ISREG(found.st_mode) else "no file "
        changed, moved = found.st_mtime_ns, found.st_ctime_ns
        parts.append(f"{kind}{found.st_ino:x}.{found.st_size:x}.{changed:x}.{moved:x}")
        youngest = max(youngest, changed, moved)
    return " ".join(parts), youngest / 1e9
