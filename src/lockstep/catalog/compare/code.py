"""The code of two runs, commit and recorded patch together, as one unified diff.

git puts each side's whole state together in a throw-away index and object folder: the commit's tree, with the
recorded patch applied. So the diff is exact whatever was committed in between, and nothing of the repository is
touched. Where a commit is not to be had, that is said, and the recorded patches are held against each other.
"""

import difflib
import hashlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.catalog import git, uncommitted
from lockstep.catalog.report.values import mapping, number, objects
from lockstep.catalog.run import Run
from lockstep.catalog.source_files import is_source
from lockstep.files import read_object, read_plain

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
LARGEST_DIFF_BYTES = 4 << 20


class Unavailable(Exception):
    """A run's code cannot be put together here; the message says why."""


@dataclass(frozen=True)
class Missing:
    """A changed file that no patch holds: what is recorded of it. Without ``sha256``, bytes and time stand for it."""

    path: str
    bytes: int
    sha256: str | None
    tracked: bool
    modified_ns: int | None = None

    @property
    def is_code(self) -> bool:
        """Whether a run's code is not all recorded without it."""
        return self.tracked or is_source(self.path)


@dataclass(frozen=True)
class State:
    """What a run's record says of its code. ``gap`` says what is missing from the record.

    ``complete`` is false where the patch is missing. ``missing`` are files that it leaves out (the first hundred of
    them), ``missing_sha256`` one digest of all of them: None in records of versions that kept none.
    """

    commit: str | None
    patch: bytes | None
    tree: str | None
    gap: str | None
    complete: bool = True
    missing: tuple[Missing, ...] = ()
    missing_sha256: str | None = None

    @property
    def short(self) -> str:
        """For people: the commit, and the patch on top of it."""
        if self.commit is None:
            return "no commit"
        patch = f" + patch {hashlib.sha256(self.patch).hexdigest()[:12]}" if self.patch else ""
        return self.commit[:12] + patch

    @property
    def identity(self) -> tuple[str | None, bytes | None]:
        """Equal for equal code, as far as it was recorded."""
        return self.commit, self.patch


@dataclass
class Comparison:
    """``same`` is None where it cannot be told."""

    same: bool | None
    words: str
    files: list[str] = field(default_factory=list)
    diff: str = ""
    gaps: list[str] = field(default_factory=list)

    @property
    def computes(self) -> bool:
        """Whether the difference is, or may be, in files that a run computes with."""
        return self.same is None or any(map(is_source, self.files))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "computes": self.computes and self.same is not True}


def state_of(run: Run, attempt: int = 1) -> State:
    """The record of one attempt's code. A patch whose digest is not the recorded one counts as missing."""
    name = "provenance.json" if attempt == 1 else f"provenance.attempt-{attempt}.json"
    return state_in(run, mapping(read_object(run.path / name).get("git")))


def state_in(run: Run, record: dict[str, Any]) -> State:
    """The same, from the part ``git`` of a provenance record."""
    commit, tree = record.get("commit"), record.get("tree")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        why = record.get("absent") or (
            "the repository had no commit yet" if record else "nothing was recorded"
        )
        return State(None, None, None, str(why), False)
    tree = tree if isinstance(tree, str) and COMMIT.fullmatch(tree) else None
    gap, complete = None, True
    if isinstance(record.get("patch_absent"), str):
        gap = f"uncommitted changes were not recorded: {record['patch_absent']}"
        complete = False
    missing = _missing(record)
    if gap is None and (count := int(number(record.get("left_out_count")) or 0)):
        gap = f"{count} changed file{'' if count == 1 else 's'} not in the patch: {_named(missing, count)}"
    if gap is None and isinstance(record.get("untracked_absent"), str):
        gap = f"untracked files were not recorded: {record['untracked_absent']}"
    digest = record.get("left_out_sha256")
    left = missing, digest if isinstance(digest, str) else None
    recorded = mapping(record.get("patch"))
    if not recorded:
        return State(commit, None, tree, gap, complete, *left)
    name = recorded.get("file")
    try:
        if not isinstance(name, str) or not re.fullmatch(r"source(\.attempt-\d{1,6})?\.patch", name):
            raise OSError("its name is none of a patch")
        patch = read_plain(run.path / name, uncommitted.PATCH_BYTES)
    except OSError as error:
        return State(commit, None, tree, f"its patch cannot be read: {error.strerror or error}", False)
    if hashlib.sha256(patch).hexdigest() != recorded.get("sha256"):
        return State(commit, None, tree, "its patch is not the one that was recorded", False)
    return State(commit, patch, tree, gap, complete, *left)


def _missing(record: dict[str, Any]) -> tuple[Missing, ...]:
    found = []
    for each in objects(record.get("left_out")):
        path, size, digest, time = (each.get(key) for key in ("path", "bytes", "sha256", "modified_ns"))
        if isinstance(path, str):
            known = digest if isinstance(digest, str) else None
            then = time if isinstance(time, int) else None
            found.append(Missing(path, int(number(size) or 0), known, each.get("tracked") is True, then))
    return tuple(found)


def _named(missing: tuple[Missing, ...], count: int) -> str:
    names = ", ".join(each.path for each in missing[:3])
    return f"{names} and {count - 3} more" if count > 3 else names


def current_state(folder: Path, leave_out: Path) -> State:
    """The code as it stands in the repository around a folder; ``leave_out`` is the catalog."""
    try:
        repository = git.open_repository(folder)
        commit = repository.line("rev-parse", "--verify", "--quiet", "HEAD")
        with tempfile.TemporaryDirectory(prefix="lockstep-git-") as scratch:
            changes = uncommitted.collect(repository, commit, Path(scratch), leave_out)
    except git.GitError as error:
        return State(None, None, None, str(error), False)
    if commit is None:
        return State(None, None, None, "the repository has no commit yet", False)
    record = {"left_out": [each.as_dict() for each in changes.left_out]}
    return State(
        commit, changes.patch or None, changes.tree, None, True, _missing(record), changes.left_out_sha256
    )


def compare(a: State, b: State, folders: list[Path]) -> Comparison:
    """How two states differ; ``folders`` are where a repository that knows their commits may stand."""
    gaps = [f"{name}: {state.gap}" for name, state in (("A", a), ("B", b)) if state.gap]
    if a.commit is None or b.commit is None:
        return Comparison(None, f"{a.short} against {b.short}: it cannot be told", gaps=gaps)
    if a.identity == b.identity or (a.tree is not None and a.tree == b.tree):
        return _beside_the_patch(a, b, gaps)
    words = f"{a.short} against {b.short}"
    try:
        repository = repository_with([a.commit, b.commit], folders)
        diff, files = _diff(repository, a, b)
    except Unavailable as error:
        return _of_patches(a, b, words, [*gaps, str(error)])
    files += [path for path in _missing_apart(a, b)[0] if path not in files]
    return Comparison(not files, words, files, diff, gaps)


def _beside_the_patch(a: State, b: State, gaps: list[str]) -> Comparison:
    """Two states of the same commit and patch: whether what the patches leave out is the same too."""
    words = f"the same, {a.short}"
    if not (a.complete and b.complete):
        return Comparison(None, words, gaps=gaps)
    other, unknown = _missing_apart(a, b)
    if other:
        told = f"the same commit and patch, {a.short}; what the patch leaves out differs"
        return Comparison(False, told, other, gaps=gaps)
    known = all(each.sha256 for each in (*a.missing, *b.missing)) and not _unnamed(a, b)
    return Comparison(None if any(map(is_source, unknown)) else True, words, gaps=[] if known else gaps)


def _missing_apart(a: State, b: State) -> tuple[list[str], list[str]]:
    """Of the files that the patches leave out: those that differ, and those of which that cannot be told."""
    left, right = ({each.path: each for each in state.missing} for state in (a, b))
    other, unknown = [], []
    for path in sorted(left.keys() | right.keys()):
        one, two = left.get(path), right.get(path)
        if one is None or two is None or one.bytes != two.bytes:
            other.append(path)
        elif one.sha256 is None or two.sha256 is None:
            same_time = one.modified_ns is not None and one.modified_ns == two.modified_ns
            unknown += [] if same_time else [path]
        elif one.sha256 != two.sha256:
            other.append(path)
    return other, unknown


def _unnamed(a: State, b: State) -> bool:
    """Whether the patches leave out more files than are named, and not known to be the same ones."""
    return a.missing_sha256 != b.missing_sha256 or None in (a.missing_sha256, b.missing_sha256)


def repository_with(commits: list[str], folders: list[Path]) -> git.Git:
    """The first repository that has all of the commits. Raises Unavailable."""
    missing: list[str] = []
    for folder in folders:
        try:
            repository = git.open_repository(folder)
        except git.GitError as error:
            missing.append(str(error))
            continue
        lacking = [each for each in commits if not repository.line("cat-file", "-t", f"{each}^{{commit}}")]
        if not lacking:
            return repository
        names = " and ".join(each[:12] for each in dict.fromkeys(lacking))
        missing.append(f"commit {names} is not in {repository.folder}; git fetch may bring it")
    raise Unavailable("; ".join(dict.fromkeys(missing)) or "no repository was found")


def tree_of(onto: git.Git, state: State) -> str:
    """The id of the tree of commit and patch, made in a throw-away index (git.on_a_copy). Raises Unavailable."""
    assert state.commit is not None
    try:
        onto("read-tree", state.commit)
        if state.patch:
            onto("apply", "--cached", "--whitespace=nowarn", "-", stdin=state.patch)
        tree = onto.line("write-tree", "--missing-ok")
    except git.GitError as error:
        raise Unavailable(f"the patch of {state.short} cannot be applied: {error}") from None
    if tree is None or (state.tree is not None and tree != state.tree):
        raise Unavailable(f"commit and patch of {state.short} do not make the code that was recorded")
    return tree


def _diff(repository: git.Git, a: State, b: State) -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory(prefix="lockstep-git-") as scratch:
        try:
            onto = git.on_a_copy(repository, Path(scratch))
            trees = [tree_of(onto, state) for state in (a, b)]
            files = onto.paths("diff-tree", "-r", "--name-only", "-z", *trees)
            diff = onto("diff-tree", "-r", *git.PLAIN_DIFF, *trees, limit=LARGEST_DIFF_BYTES)
        except git.GitError as error:
            raise Unavailable(str(error)) from None
    text = diff[:LARGEST_DIFF_BYTES].decode(errors="replace")
    if len(diff) > LARGEST_DIFF_BYTES:
        text += f"\n[cut after {LARGEST_DIFF_BYTES >> 20} MB]\n"
    return text, [path.decode(errors="replace") for path in files]


def _of_patches(a: State, b: State, words: str, gaps: list[str]) -> Comparison:
    """The recorded patches against each other, where the commits are not to be had."""
    left, right = ((state.patch or b"").decode(errors="replace") for state in (a, b))
    files = sorted(_files_of(left) ^ _files_of(right) | {name for name in _files_of(left) if left != right})
    lines = difflib.unified_diff(
        left.splitlines(keepends=True), right.splitlines(keepends=True), "A/source.patch", "B/source.patch"
    )
    text = "".join(lines)[:LARGEST_DIFF_BYTES]
    if a.commit == b.commit:
        return Comparison(False, f"{words}: the diff is one between the recorded patches", files, text, gaps)
    return Comparison(None, f"{words}: only the recorded patches can be compared", files, text, gaps)


def _files_of(patch: str) -> set[str]:
    return set(re.findall(r"(?m)^diff --git a/.* b/(.*)$", patch))
