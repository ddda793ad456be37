"""Anchors: a run's head, kept where an owner of the run's folder does not reach, or not unseen.

Whoever may write to a folder can change a file and write manifest, seal and chain anew, and all of it agrees.
That shows only against something outside the folder. An anchor is one line, `lockstep RUN_ID HEAD`: in a git
note (refs/notes/lockstep) on the commit that the run was made from, or wherever the user keeps a printed line.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lockstep.catalog import git
from lockstep.catalog.finding import Finding
from lockstep.catalog.seal import State
from lockstep.errors import LockstepError, UsageError
from lockstep.files import printable

REF = "refs/notes/lockstep"
_LINE = re.compile(r"(?m)^lockstep (\S+) ([0-9a-f]{64})$")
_HEAD = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Anchor:
    """A head that somebody kept, and where."""

    head: str
    where: str


def line_of(run_id: str, head: str) -> str:
    """The one line of an anchor, as a note keeps it and ``given`` takes it."""
    return f"lockstep {run_id} {head}"


def given(text: str) -> Anchor:
    """The anchor that a user wrote down: the digest alone, or the whole line. Raises UsageError."""
    words = text.split()
    if not words or not _HEAD.fullmatch(words[-1].lower()):
        raise UsageError(
            f"--anchor {printable(text)[:80]!r}: allowed is the line that lockstep seal RUN --anchor print "
            "gave, or the 64 digits at its end"
        )
    return Anchor(words[-1].lower(), "--anchor")


def repository_for(folders: list[Path], commit: str | None) -> git.Git:
    """The first folder's repository that holds the commit. Raises LockstepError where none does."""
    if commit is None:
        raise LockstepError(
            "the run has no commit on record that a note could be put on: "
            "use --anchor print and keep the line yourself"
        )
    for folder in folders:
        try:
            repository = git.open_repository(folder)
        except git.GitError:
            continue
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) and repository.line("cat-file", "-t", commit):
            return repository
    raise LockstepError(
        f"no repository here holds commit {printable(commit)[:12]}, from which the run was made: go to that "
        "repository, or use --anchor print and keep the line yourself"
    )


def write_note(repository: git.Git, commit: str, run_id: str, head: str) -> bool:
    """Add the line to the commit's note; False where it stands there already. Raises LockstepError."""
    line = line_of(run_id, head)
    if line in (repository.line("notes", f"--ref={REF}", "show", commit) or "").splitlines():
        return False
    try:
        repository("notes", f"--ref={REF}", "append", "-m", line, commit)
    except git.GitError as error:
        raise LockstepError(
            f"the note could not be written: {printable(str(error))}. git needs to know who writes: "
            "git config user.name and user.email"
        ) from None
    return True


def in_notes(folders: list[Path]) -> dict[str, list[Anchor]]:
    """Every anchor in the notes of the folders' repositories, by run id, on whichever commit it stands.

    All commits are looked at, so that a changed provenance.json cannot lead away from the note.
    """
    found: dict[str, dict[str, Anchor]] = {}
    for folder in folders:
        try:
            repository = git.open_repository(folder)
        except git.GitError:
            continue
        if repository.line("rev-parse", "--verify", "--quiet", REF) is None:
            continue
        try:
            lines = repository("grep", "--no-color", "-h", "-I", "-F", "-e", "lockstep ", REF)
        except git.GitError:
            continue  # notes of another kind
        for run_id, head in _LINE.findall(lines.decode(errors="replace")):
            where = f"git note in {printable(str(repository.folder))}"
            found.setdefault(run_id, {}).setdefault(head, Anchor(head, where))
    return {run_id: list(anchors.values()) for run_id, anchors in found.items()}


def compare(state: State, anchors: list[Anchor]) -> list[Finding]:
    """What the anchors say against a run: each must be one of its heads, and one of them the last."""
    findings = []
    for anchor in anchors:
        if anchor.head not in state.heads:
            findings.append(
                Finding(
                    "events.jsonl",
                    f"does not hold the seal {anchor.head[:16]}... that was anchored ({anchor.where}): the "
                    "record was written anew, or its seal removed, since then",
                )
            )
    if anchors and not findings and state.head not in [anchor.head for anchor in anchors]:
        findings.append(
            Finding(
                "events.jsonl",
                "holds a seal that is younger than the anchored one: no anchor covers the run as it is now. If "
                "you went on with it yourself, anchor it again: lockstep seal RUN --anchor",
            )
        )
    if anchors and not findings and state.went_on:
        findings.append(
            Finding(
                "events.jsonl",
                "goes on after the anchored seal: no anchor covers the run as it is now. If you went on with it "
                "yourself, seal and anchor it again: lockstep seal RUN --anchor",
            )
        )
    return findings
