"""What git knows of the code, read without touching the repository and without running code that it names.

Every call has a timeout, no terminal, no network, and none of the programs that a repository's configuration
can name: hooks, fsmonitor, external diffs, textconv, clean filters. What has to be written goes to a copy of the
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
_NEVER = (
    *("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.safecrlf=false", "core.splitIndex=false"),
    # Shortcuts by which git would not look at a file that was changed.
    *("core.untrackedCache=false", "core.ignoreStat=false", "core.trustctime=true", "core.checkStat=default"),
)
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

    def __call__(
        self, *arguments: str, stdin: bytes = b"", limit: int = OUTPUT_BYTES, seconds: float | None = None
    ) -> bytes:
        """The output of one call, cut after ``limit`` + 1 bytes. Raises GitError."""
        seconds = seconds or self.seconds
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
                    timeout=seconds,
                    check=False,
                    start_new_session=True,  # Ctrl-C is meant for the run
                )
            except OSError as error:
                raise GitError(f"git cannot be started: {error.strerror}") from error
            except subprocess.TimeoutExpired as error:
                raise GitError(f"git {arguments[0]} took longer than {seconds:.0f} s") from error
            if done.returncode != 0:
                reason = done.stderr[:1000].decode(errors="replace").strip().partition("\n")[0]
                raise GitError(f"git {arguments[0]}: {reason or f'exit status {done.returncode}'}")
            output.seek(0)
            return output.read(limit + 1)

    @property
    def has_filters(self) -> bool:
        """Whether clean filters are configured, which are not run."""
        return len(self.overrides) > len(_NEVER)

    def empties(self, name: str) -> bool:
        """Whether a clean filter of this name is configured, and not run."""
        return f"filter.{name}.clean=" in self.overrides

    def line(self, *arguments: str) -> str | None:
        """The one line that a call prints; None where it fails or prints nothing."""
        try:
            return self(*arguments).decode(errors="replace").strip() or None
        except GitError:
            return None

    def paths(self, *arguments: str) -> list[bytes]:
        """The paths that a call prints with -z, each once, sorted."""
        return sorted({path for path in self(*arguments).split(b"\0") if path})


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


def empty_tree(git: Git) -> str:
    """The id of the tree that holds nothing, in the repository's kind of digest."""
    return git.line("hash-object", "-t", "tree", "--stdin") or ""


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
