"""What differs from the commit: found without trusting git's shortcuts, and kept as a patch as far as it fits.

Programs go into the patch first. What does not fit, cannot be read, looks like a credential or is named in
``.lockstepignore`` is left out, one file at a time, and named with its digest. A catalog is no part of the code.
"""

import hashlib
import itertools
import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from lockstep.catalog import credentials, ignored
from lockstep.catalog.found_changes import Found, find
from lockstep.catalog.git import OUTPUT_BYTES, PLAIN_DIFF, Git, GitError, empty_tree, on_a_copy
from lockstep.catalog.source_files import is_source
from lockstep.files import digest_of

PATCH_BYTES = 10 << 20
TRACKED_FILE_BYTES = 10 << 20
TRACKED_BYTES = 100 << 20  # of all tracked files together: git compares them whole
UNTRACKED_FILE_BYTES = 1 << 20
MOST_UNTRACKED = 2000  # of files that are no programs
DIGEST_SECONDS = 5.0  # for the digests of everything that is left out
DIGEST_FILE_BYTES = 1 << 30
CREDENTIALS = "looks like credentials"
FILTERED = "git keeps it through a filter, which is not run"
_SECTION = re.compile(rb"(?m)^diff --git ")


@dataclass(frozen=True)
class LeftOut:
    """A changed file whose content no patch holds. ``sha256`` is None where reading it would take too long."""

    path: str
    bytes: int
    reason: str
    tracked: bool
    sha256: str | None = None
    modified_ns: int = 0

    def as_dict(self) -> dict[str, object]:
        """For the record; the time stands for the content where that has no digest."""
        found: dict[str, object] = {"path": self.path, "bytes": self.bytes, "reason": self.reason}
        found |= {"tracked": self.tracked, "sha256": self.sha256}
        return found if self.sha256 else {**found, "modified_ns": self.modified_ns}


@dataclass(frozen=True)
class Changes:
    """``tree`` is the id of commit and patch together. ``untracked`` is None where they could not be listed."""

    staged: int
    unstaged: int
    untracked: int | None
    tree: str | None
    patch: bytes
    left_out: list[LeftOut] = field(default_factory=list)
    untracked_absent: str | None = None

    @property
    def dirty(self) -> bool | None:
        """Whether the files are others than the commit's; None where that is not known."""
        if self.patch or self.left_out:
            return True
        return None if self.untracked is None else False

    @property
    def left_out_sha256(self) -> str:
        """One digest for everything that was left out: equal where it is the same."""
        return digest_of([each.as_dict() for each in self.left_out])


def collect(git: Git, commit: str | None, scratch: Path, catalog: Path) -> Changes:
    """Everything that differs from the commit (from nothing, without a commit). Raises GitError.

    ``scratch`` is an empty folder that takes a copy of the index and new objects.
    """
    onto = on_a_copy(git, scratch)
    base = commit or empty_tree(onto)
    found = find(onto, base, catalog)
    counts = (
        len(found.staged),
        len(found.unstaged),
        None if found.untracked is None else len(found.untracked),
    )
    chosen, refused = _choose(git.folder, found)
    tree, patch, more = _patch(onto, base, scratch, chosen)
    left_out = _digested(git.folder, {**refused, **more}, found.tracked)
    return Changes(*counts, tree, patch, left_out, found.untracked_absent)


def _choose(top: Path, found: Found) -> tuple[list[bytes], dict[bytes, str]]:
    """The paths that may go into the patch, what matters most first, and the reasons why the others may not."""
    patterns = ignored.read(top)
    ranked = sorted(
        (
            not is_source(name := path.decode(errors="replace")),
            path not in found.tracked,
            _size(top, path),
            name,
            path,
        )
        for path in found.all
    )
    chosen: list[bytes] = []
    refused: dict[bytes, str] = {}
    room = {True: PATCH_BYTES, False: TRACKED_BYTES}  # by whether a file is untracked
    others = MOST_UNTRACKED
    for other, untracked, size, name, path in ranked:
        reason = _refusal(top, path, name, size, untracked, patterns)
        if reason is None and path in found.filtered and os.path.lexists(top / os.fsdecode(path)):
            reason = FILTERED
        if reason is None and size > room[untracked]:
            reason = f"no room left in {(PATCH_BYTES if untracked else TRACKED_BYTES) >> 20} MB"
        if reason is None and untracked and other and not others:
            reason = f"more than {MOST_UNTRACKED:,} files"
        if reason is not None:
            refused[path] = reason
            continue
        chosen.append(path)
        room[untracked] -= size
        others -= untracked and other
    return chosen, refused


def _refusal(
    top: Path, path: bytes, name: str, size: int, untracked: bool, patterns: ignored.Patterns
) -> str | None:
    file = top / os.fsdecode(path)
    if path.endswith(b"/"):
        return "a repository of its own"
    wanted = patterns.decision(name)
    if wanted is True:
        return f"named in {ignored.NAME}"
    if wanted is None and credentials.named_like_one(name):
        return CREDENTIALS
    limit = UNTRACKED_FILE_BYTES if untracked else TRACKED_FILE_BYTES
    if size > limit:
        return f"above {limit >> 20} MB"
    if os.path.lexists(file) and not file.is_symlink() and not os.access(file, os.R_OK):
        return "cannot be read"
    return None


def _patch(
    git: Git, base: str, scratch: Path, chosen: list[bytes]
) -> tuple[str | None, bytes, dict[bytes, str]]:
    """Tree and patch of the chosen paths, and those that had to go when the patch was seen, with the reason."""
    refused: dict[bytes, str] = {}
    patterns = ignored.read(git.folder)
    for attempt in range(8):
        index = scratch / f"index-{attempt}"
        onto = Git(git.folder, git.overrides, {**git.environment, "GIT_INDEX_FILE": str(index)})
        onto("read-tree", base)
        _take(onto, chosen)
        patch = onto("diff-index", "--cached", *PLAIN_DIFF, base, limit=OUTPUT_BYTES) if chosen else b""
        if len(patch) > OUTPUT_BYTES:
            bad = {path: f"no room left in {PATCH_BYTES >> 20} MB" for path in chosen[len(chosen) // 2 :]}
        else:
            bad = _not_to_be_kept(onto, base, patch, chosen, patterns)
        if not bad:
            return onto.line("write-tree", "--missing-ok"), patch, refused
        refused |= bad
        chosen = [path for path in chosen if path not in bad]
    raise GitError("no patch that fits was found")


def _take(git: Git, paths: list[bytes]) -> None:
    """Bring files as they stand into the index; those that are gone are taken out of it."""
    gone: list[bytes] = []
    there: list[bytes] = []
    for path in paths:
        file = git.folder / os.fsdecode(path)
        is_folder = file.is_dir() and not file.is_symlink() and not (file / ".git").exists()
        (gone if is_folder or not os.path.lexists(file) else there).append(path)
    if gone:
        git("update-index", "-z", "--force-remove", "--stdin", stdin=b"\0".join([*gone, b""]))
    if there:
        git("update-index", "-z", "--add", "--replace", "--stdin", stdin=b"\0".join([*there, b""]))


def _not_to_be_kept(
    git: Git, base: str, patch: bytes, chosen: list[bytes], patterns: ignored.Patterns
) -> dict[bytes, str]:
    """Paths whose part of a patch looks like a credential, or for which there is no room."""
    parts = _parts(git, base, patch)
    bad: dict[bytes, str] = {}
    for path, part in parts.items():
        name = path.decode(errors="replace")
        if patterns.decision(name) is not False and _shows_one(git.folder, path, name, part):
            bad[path] = CREDENTIALS
    room = PATCH_BYTES
    for path in chosen:
        size = len(parts.get(path, b""))
        if path in bad:
            continue
        if size > room:
            bad[path] = f"no room left in {PATCH_BYTES >> 20} MB"
        else:
            room -= size
    return bad


def _parts(git: Git, base: str, patch: bytes) -> dict[bytes, bytes]:
    """The patch by path. Where a file became a link, or the other way round, two sections are of one path."""
    starts = [each.start() for each in _SECTION.finditer(patch)]
    sections = [patch[begin:end] for begin, end in itertools.pairwise([*starts, len(patch)])]
    fields = git("diff-index", "--cached", "--raw", "--no-renames", "-z", base).split(b"\0")
    parts: dict[bytes, bytes] = {}
    position = 0
    for about, path in zip(fields[::2], fields[1::2], strict=False):
        count = 2 if about.endswith(b" T") else 1
        parts[path] = b"".join(sections[position : position + count])
        position += count
    if position != len(sections):
        raise GitError("the patch has other files than the index")
    return parts


def _shows_one(top: Path, path: bytes, name: str, part: bytes) -> bool:
    if credentials.holds_one(name, part):
        return True
    if b"\nGIT binary patch\n" not in part:
        return False
    try:  # the patch has it compressed
        return credentials.holds_one(name, (top / os.fsdecode(path)).read_bytes())
    except OSError:
        return False


def _digested(top: Path, reasons: dict[bytes, str], tracked: set[bytes]) -> list[LeftOut]:
    """What is left out, with digests as far as there is time for them; programs first, then what is tracked."""
    began = time.monotonic()
    found = []
    for path, reason in reasons.items():
        name = path.decode(errors="backslashreplace")
        try:
            status = (top / os.fsdecode(path)).lstat()
        except OSError:
            found.append(LeftOut(name, 0, reason, path in tracked))
            continue
        digest = None
        in_time = time.monotonic() - began < DIGEST_SECONDS and status.st_size <= DIGEST_FILE_BYTES
        if in_time and stat.S_ISREG(status.st_mode):
            digest = digest_of_file(top / os.fsdecode(path))
        found.append(LeftOut(name, status.st_size, reason, path in tracked, digest, status.st_mtime_ns))
    found.sort(key=lambda each: (not is_source(each.path), not each.tracked, each.path))
    return found


def digest_of_file(path: Path) -> str | None:
    """The SHA-256 of a plain file; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _size(top: Path, path: bytes) -> int:
    try:
        return (top / os.fsdecode(path)).lstat().st_size
    except OSError:
        return 0
