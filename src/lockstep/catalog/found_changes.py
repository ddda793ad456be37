"""Which paths differ from the commit, by the bytes of their files and not by what the index says of them.

git leaves out files that a user marked (skip-worktree, assume-unchanged) and calls those changed whose times moved.
In a copy of the index the marks are taken away and every file whose times differ is read again.
"""

import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from lockstep.catalog.git import Git, GitError
from lockstep.catalog.source_files import is_source

REFRESH_SECONDS = 60.0  # large files whose times moved are read whole
LARGEST_POINTER = 1024
SMALL_BYTES = 256 << 10
AHEAD_SECONDS = 3600.0


@dataclass(frozen=True)
class Found:
    """Paths as git writes them. ``untracked`` is None where git could not list them in time, and why.

    ``filtered`` are those that a clean filter changes on their way into git: their plain text is not git's to keep.
    """

    staged: list[bytes]
    unstaged: list[bytes]
    untracked: list[bytes] | None
    untracked_absent: str | None = None
    filtered: set[bytes] = field(default_factory=set)

    @property
    def tracked(self) -> set[bytes]:
        """Everything that differs and that the commit or the index knows."""
        return {*self.staged, *self.unstaged}

    @property
    def all(self) -> set[bytes]:
        """Everything that differs."""
        return self.tracked | set(self.untracked or ())


def find(git: Git, base: str, catalog: Path) -> Found:
    """Compare with ``base``; ``git`` works on a copy of the index. Raises GitError."""
    moved = _moved(git)
    _look_at_everything(git)
    staged = git.paths("diff-index", "--cached", "--name-only", "--no-renames", "-z", base)
    unstaged = git.paths("diff-files", "--name-only", "-z", "--ignore-submodules=dirty")
    unstaged = _without_stored_elsewhere(git, unstaged)
    cleaned = _cleaned(git, unstaged)
    unstaged = [path for path in unstaged if path in moved or path not in cleaned]
    try:
        others: list[bytes] | None = git.paths("ls-files", "-z", "--others", "--exclude-standard")
        absent = None
    except GitError as error:
        others, absent = None, str(error)
    others = others and _without_catalogs(git.folder, others, catalog)
    found = Found(staged, unstaged, others, absent)
    return replace(found, filtered=_cleaned(git, list(found.all)))


def _moved(git: Git) -> set[bytes]:
    """Paths whose times and sizes are not what the index has: of files with a filter, no more is known here.

    The copy of the index is dated ahead, so that git does not read files which changed in the second in which the index
    was written: without their filter their bytes are always others than the commit's.
    """
    index = Path(git.environment["GIT_INDEX_FILE"])
    if not git.has_filters or not index.exists():
        return set()
    copy = index.with_name("index-of-times")
    shutil.copyfile(index, copy)
    ahead = time.time() + AHEAD_SECONDS
    os.utime(copy, (ahead, ahead))
    onto = replace(git, environment={**git.environment, "GIT_INDEX_FILE": str(copy)})
    moved = set(onto.paths("diff-files", "--name-only", "-z", "--ignore-submodules=all"))
    written = index.stat().st_mtime_ns  # the original's, which its copy was given
    return moved | {path for path in onto.paths("ls-files", "-z") if _is_younger(git.folder, path, written)}


def _is_younger(top: Path, path: bytes, written: int) -> bool:
    """Whether a file changed after the index was written, be it in the same second and to the same size."""
    try:
        return (top / os.fsdecode(path)).lstat().st_mtime_ns > written
    except OSError:
        return False


def _cleaned(git: Git, paths: list[bytes]) -> set[bytes]:
    """Those of the paths that have a filter which is configured, other than that of Git LFS."""
    if not git.has_filters:
        return set()
    named = _filters(git, paths).items()
    return {path for path, name in named if name != b"lfs" and git.empties(os.fsdecode(name))}


def _look_at_everything(git: Git) -> None:
    """Forget, in the copy of the index, what would keep git from reading a file, and have it read them.

    Times are kept for large files that are no programs, which would take long to read, and for files with a filter,
    which would all look changed, as filters are not run.
    """
    lines = git.paths("ls-files", "-v", "--stage", "-z")
    sparse = git.line("config", "--bool", "core.sparseCheckout") == "true"
    entries = []  # (whether it is marked, what update-index takes, the path)
    for line in lines:
        about, _, path = line.partition(b"\t")
        tag, mode, digest, stage = about.split(b" ")
        marked = tag != b"H"
        if stage != b"0" or mode == b"160000":
            continue
        size = _size(git.folder, path)
        if size is None and sparse and tag in (b"S", b"s"):
            continue  # not checked out
        if marked or is_source(path.decode(errors="replace")) or (size or 0) <= SMALL_BYTES:
            entries.append((marked, mode + b" " + digest + b"\t" + path, path))
    filtered = set(_filters(git, [path for *_, path in entries])) if git.has_filters else set()
    again = [line for marked, line, path in entries if marked or path not in filtered]
    if again:
        git("update-index", "-z", "--index-info", stdin=b"\0".join([*again, b""]))
    git("update-index", "-q", "--unmerged", "--really-refresh", seconds=max(REFRESH_SECONDS, git.seconds))


def _size(top: Path, path: bytes) -> int | None:
    try:
        return (top / os.fsdecode(path)).lstat().st_size
    except OSError:
        return None


def _filters(git: Git, paths: list[bytes]) -> dict[bytes, bytes]:
    """The name of the filter by path, of those that have one."""
    if not paths:
        return {}
    fields = git("check-attr", "-z", "--stdin", "filter", stdin=b"\0".join([*paths, b""])).split(b"\0")
    named = zip(fields[::3], fields[2::3], strict=False)
    return {path: value for path, value in named if value not in (b"unspecified", b"unset")}


def _without_stored_elsewhere(git: Git, paths: list[bytes]) -> list[bytes]:
    """Without files of Git LFS that are what their pointer in the index says: its filter is not run here."""
    kept_elsewhere = {path for path, value in _filters(git, paths).items() if value == b"lfs"}
    return [path for path in paths if path not in kept_elsewhere or not _is_as_its_pointer(git, path)]


def _is_as_its_pointer(git: Git, path: bytes) -> bool:
    try:
        pointer = git("cat-file", "blob", f":{os.fsdecode(path)}", limit=LARGEST_POINTER)
        fields = dict(line.split(b" ", 1) for line in pointer.splitlines() if b" " in line)
        with (git.folder / os.fsdecode(path)).open("rb") as file:
            if str(os.fstat(file.fileno()).st_size).encode() != fields.get(b"size"):
                return False
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (GitError, OSError, ValueError):
        return False
    return fields.get(b"oid") == f"sha256:{digest}".encode()


def _without_catalogs(top: Path, paths: list[bytes], catalog: Path) -> list[bytes]:
    """Without what catalogs hold: the run's own, links to it, and others whose runs stand in the work tree."""
    own = catalog.resolve()
    inside = os.fsencode(f"{own.relative_to(top.resolve())}/") if _below(own, top.resolve()) else None
    known = set(paths)
    runs = {
        path.removesuffix(b"/events.jsonl") + b"/"
        for path in paths
        if path.endswith(b"/events.jsonl")
        and path.removesuffix(b"events.jsonl") + b"parameters.yaml" in known
    }
    catalogs = {run[:-1].rpartition(b"/")[0] + b"/." for run in runs if run.count(b"/") > 1}
    beside = tuple(runs | catalogs)

    def is_code(path: bytes) -> bool:
        if (inside is not None and path.startswith(inside)) or (beside and path.startswith(beside)):
            return False
        file = top / os.fsdecode(path)
        return not (file.is_symlink() and _below(own, _resolved(file)))

    return [path for path in paths if is_code(path)]


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return path


def _below(path: Path, folder: Path) -> bool:
    return path == folder or path.is_relative_to(folder)
