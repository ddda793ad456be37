"""What git knows of the code, read without touching the repository and without running code that it names.

Every call has a timeout, no terminal, no network, and none of the programs that a repository's configuration
can name: hooks, fsmonitor, external diffs, textconv, clean filters. Changes are collected in a copy of the
index and a throw-away object folder, so index, objects and references of the repository stay as they are.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

CALL_SECONDS = 10.0
OUTPUT_BYTES = 64 << 20
PATCH_BYTES = 10 << 20
UNTRACKED_FILE_BYTES = 1 << 20
CHANGED_BYTES = 100 << 20
_NEVER = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.safecrlf=false", "core.splitIndex=false")
_KEPT = ("GIT_CEILING_DIRECTORIES", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM")


class GitError(Exception):
    """git is missing, refused, or took too long; the message says which."""


@dataclass
class Git:
    """git in one folder. ``overrides`` are settings that win over the repository's own."""

    folder: Path
    overrides: tuple[str, ...] = _NEVER
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = field(default_factory=lambda: CALL_SECONDS)  # the longest that a call may take

    def __call__(self, *arguments: str, stdin: bytes = b"", limit: int = OUTPUT_BYTES) -> bytes:
        """The output of one call, cut after ``limit`` + 1 bytes. Raises GitError."""
        settings = [part for override in self.overrides for part in ("-c", override)]
        command = ["git", "--no-pager", *settings, "-C", str(self.folder), *arguments]
        with tempfile.TemporaryFile() as output:  # not a pipe: a change of any size must not fill memory
            try:
                done = subprocess.run(
                    command,
                    input=stdin,
                    stdout=output,
                    stderr=subprocess.PIPE,
                    env=_environment() | self.environment,
                    timeout=self.seconds,
                    check=False,
                    start_new_session=True,  # Ctrl-C is meant for the run
                )
            except OSError as error:
                raise GitError(f"git cannot be started: {error.strerror}") from error
            except subprocess.TimeoutExpired as error:
                raise GitError(f"git {arguments[0]} took longer than {self.seconds:.0f} s") from error
            if done.returncode != 0:
                reason = done.stderr[:1000].decode(errors="replace").strip().partition("\n")[0]
                raise GitError(f"git {arguments[0]}: {reason or f'exit status {done.returncode}'}")
            output.seek(0)
            return output.read(limit + 1)

    def line(self, *arguments: str) -> str | None:
        """The one line that a call prints; None where it fails or prints nothing."""
        try:
            return self(*arguments).decode(errors="replace").strip() or None
        except GitError:
            return None

    def paths(self, *arguments: str) -> list[bytes]:
        """The paths that a call prints with -z, each once, sorted."""
        return sorted({path for path in self(*arguments).split(b"\0") if path})


@dataclass(frozen=True)
class Changes:
    """What differs from the commit: counts, the whole state as one tree id, and a patch where it fits."""

    staged: int
    unstaged: int
    untracked: int
    tree: str | None
    patch: bytes
    left_out: list[dict[str, object]]


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key in _KEPT}
    return kept | {
        "GIT_ALLOW_PROTOCOL": "",  # a partial clone would fetch what it lacks
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C",
    }


def open_repository(folder: Path) -> Git:
    """git at the top of the work tree that a folder stands in. Raises GitError where there is none."""
    top = Git(folder)("rev-parse", "--show-toplevel").removesuffix(b"\n")
    git = Git(Path(os.fsdecode(top)))
    # A clean filter is a command of the configuration's; emptied, the bytes are taken as they are.
    try:
        configured = git("config", "--name-only", "--get-regexp", r"^filter\.")
    except GitError:
        return git  # none is configured
    names = re.findall(rb"(?m)^filter\.(.*)\.[^.]*$", configured)
    if any(b"=" in name for name in names):
        raise GitError("a clean filter is configured under a name with '=', which cannot be switched off")
    emptied = [
        f"filter.{os.fsdecode(name)}.{key}"
        for name in sorted(set(names))
        for key in ("clean=", "smudge=", "process=", "required=false")
    ]
    return Git(git.folder, (*_NEVER, *emptied))


def remote_url(git: Git) -> str | None:
    """Where the code comes from: the URL of `origin`, or of the first remote, without credentials."""
    try:
        lines = git("config", "--get-regexp", r"^remote\..*\.url$").decode(errors="replace").splitlines()
    except GitError:
        return None
    urls = dict(line.split(" ", 1) for line in lines if " " in line)
    url = urls.get("remote.origin.url") or next(iter(urls.values()), None)
    return without_credentials(url) if url else None


def without_credentials(url: str) -> str | None:
    """The URL without user, password, query and fragment; None where what is left might still hold one."""
    if "://" not in url:
        # host:path as ssh takes it, or a local path: no place for a password
        return None if "::" in url or re.match(r"[^/]*:[^/]*@", url) else url
    scheme, _, rest = url.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    host = authority.rpartition("@")[2]
    bare = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:@\[\]]*)(:\d*)?", host)
    return f"{scheme}://{host}{slash}{path}" if bare and "@" not in path else None


def collect_changes(git: Git, commit: str | None, scratch: Path, leave_out: Path) -> Changes:
    """Staged, unstaged and untracked changes as one patch onto the commit (onto nothing without a commit).

    ``scratch`` is an empty folder that takes a copy of the index and new objects; ``leave_out`` a folder (the
    catalog) whose files are never part of the code. Raises GitError.
    """
    git = on_a_copy(git, scratch)
    base = commit or git.line("hash-object", "-t", "tree", "--stdin") or ""
    staged = git.paths("diff-index", "--cached", "--name-only", "-z", base)
    changed = git.paths("diff-files", "--name-only", "-z", "--ignore-submodules=dirty")
    others = [
        path for path in git.paths("ls-files", "-z", "--others", "--exclude-standard", *_but(git, leave_out))
    ]
    taken, left_out = _choose(git.folder, others)
    if changed or taken:
        total = sum(_size(git.folder, path) for path in changed)
        if total > CHANGED_BYTES:
            raise GitError(f"{total >> 20} MB of files have changed: too much for a patch")
        git("update-index", "-z", "--add", "--remove", "--stdin", stdin=b"\0".join([*changed, *taken, b""]))
    patch = b""
    if staged or changed or taken:
        patch = git("diff-index", "--cached", *PLAIN_DIFF, base, limit=PATCH_BYTES)
    tree = git.line("write-tree", "--missing-ok")
    return Changes(len(staged), len(changed), len(others), tree, patch, left_out)


PLAIN_DIFF = (
    "--patch",
    "--binary",
    "--full-index",
    "--no-color",
    "--no-ext-diff",
    "--no-renames",
    "--no-textconv",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--submodule=short",
    "--ignore-submodules=none",
)


def on_a_copy(git: Git, scratch: Path) -> Git:
    """git with a copy of the index and a new object folder, both in an empty folder, before the repository's."""
    index, objects = (
        git.folder / os.fsdecode(path)
        for path in git("rev-parse", "--git-path", "index", "--git-path", "objects").splitlines()
    )
    if index.exists():
        # With its time: git compares it with the files' times to know which may have changed unseen.
        shutil.copy2(index, scratch / "index")
    (scratch / "objects").mkdir()
    quoted = str(objects.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    copied = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"',
    }
    return Git(git.folder, git.overrides, copied)


def _but(git: Git, leave_out: Path) -> list[str]:
    """The pathspec that leaves a folder out, where it lies in the work tree."""
    top, folder = git.folder.resolve(), leave_out.resolve()
    if folder == top or not folder.is_relative_to(top):
        return []
    return ["--", ".", f":(top,exclude,literal){folder.relative_to(top)}"]


def _choose(top: Path, others: list[bytes]) -> tuple[list[bytes], list[dict[str, object]]]:
    """Which untracked files go into the patch, and which are too large or cannot be read, with the reason."""
    taken: list[bytes] = []
    left_out: list[dict[str, object]] = []
    room = PATCH_BYTES
    for path in others:
        size = _size(top, path)
        reason = None
        if path.endswith(b"/"):
            reason = "a repository of its own"
        elif size > UNTRACKED_FILE_BYTES:
            reason = "above 1 MB"
        elif size > room:
            reason = "no room left in 10 MB"
        elif not (top / os.fsdecode(path)).is_symlink() and not os.access(top / os.fsdecode(path), os.R_OK):
            reason = "cannot be read"
        if reason is None:
            taken.append(path)
            room -= size
        else:
            left_out.append({"path": path.decode(errors="backslashreplace"), "bytes": size, "reason": reason})
    return taken, left_out


def _size(top: Path, path: bytes) -> int:
    try:
        return (top / os.fsdecode(path)).lstat().st_size
    except OSError:
        return 0
