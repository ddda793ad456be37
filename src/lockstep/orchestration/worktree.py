"""A run's code as it was, in a temporary git worktree: the commit checked out, the recorded patch applied.

It stands in a folder of its own, which is removed in the end, also after Ctrl-C; what a SIGKILL leaves is swept
by the next one, which knows by a lock that nobody works there any more. Filters and hooks that the repository's
configuration names are not run.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lockstep import linux, signals
from lockstep.catalog import git
from lockstep.catalog.compare import code
from lockstep.errors import UsageError
from lockstep.files import contained, sha256_of

PREFIX = "lockstep-reproduce-"
CHECKOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Recreated:
    """``root`` is the top of the recorded code, ``folder`` where in it the run was started."""

    scratch: Path
    root: Path
    folder: Path


@contextlib.contextmanager
def recreated(state: code.State, inside: str | None, repositories: list[Path]) -> Iterator[Recreated]:
    """The code of a run in a folder of its own. Raises UsageError where it cannot be put together."""
    try:
        assert state.commit is not None
        repository = replace(code.repository_with([state.commit], repositories), seconds=CHECKOUT_SECONDS)
        with tempfile.TemporaryDirectory(prefix="lockstep-git-") as scratch:
            code.tree_of(git.on_a_copy(repository, Path(scratch)), state)  # refuses before anything is made
        sweep(repository)
        with _scratch() as scratch_folder:
            root = scratch_folder / "code"
            try:
                repository("worktree", "add", "--detach", "--quiet", str(root), state.commit)
                own = replace(repository, folder=root)
                if state.patch:
                    own("apply", "--index", "--whitespace=nowarn", "-", stdin=state.patch)
                yield Recreated(scratch_folder, root, _within(root, inside))
            finally:
                with _undisturbed():
                    _remove(repository, root)
    except (code.Unavailable, git.GitError) as error:
        raise UsageError(f"the run's code cannot be put together: {error}") from None


def sweep(repository: git.Git) -> None:
    """Remove worktrees of ours whose process was killed."""
    for line in (repository.line("worktree", "list", "--porcelain") or "").splitlines():
        root = Path(line.removeprefix("worktree "))
        scratch = root.parent
        if line.startswith("worktree ") and scratch.name.startswith(PREFIX) and root.name == "code":
            if linux.is_locked(scratch / "lock"):
                continue
            _remove(repository, root)
            shutil.rmtree(scratch, ignore_errors=True)


def has_submodules(root: Path) -> bool:
    """Whether the code names other repositories, which a worktree leaves empty."""
    return (root / ".gitmodules").is_file()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        linux.try_lock(descriptor)
        yield folder
    finally:
        with _undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal cut the tidying up short."""
    with signals.handled(signals.STOPPING, signal.SIG_IGN):
        yield


def _remove(repository: git.Git, root: Path) -> None:
    with contextlib.suppress(git.GitError):
        repository("worktree", "remove", "--force", "--force", str(root))
    shutil.rmtree(root, ignore_errors=True)
    with contextlib.suppress(git.GitError):
        repository("worktree", "prune")


def bring(missing: Iterable[code.Missing], top: Path, root: Path) -> list[code.Missing]:
    """Copy what the patch leaves out from the work tree at ``top``, where it still holds the recorded bytes.

    Returns what is not to be had there.
    """
    lacking = []
    for each in missing:
        try:
            source, target = contained(Path(each.path), top), contained(Path(each.path), root)
            if each.sha256 is None or sha256_of(source) != each.sha256:
                raise OSError("it holds other bytes")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        except (OSError, ValueError):
            lacking.append(each)
    return lacking


def _within(root: Path, inside: str | None) -> Path:
    """The folder in the recorded code that the run was started in; its top where that is not known."""
    folder = (root / (inside or ".")).resolve()
    return folder if folder.is_relative_to(root) and folder.is_dir() else root
