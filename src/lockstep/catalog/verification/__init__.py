"""`lockstep verify`: all that can be proven of a run, what was found against it, and what cannot be proven.

Everything is read as bytes and text: no pickle, no code that the record names, no link is followed.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.catalog import anchor, events, seal, signature, status
from lockstep.catalog.access import unreadable
from lockstep.catalog.anchor import Anchor
from lockstep.catalog.finding import Finding, of_history
from lockstep.catalog.leftovers import TEMPORARY
from lockstep.catalog.manifest import outside_the_seal, walk
from lockstep.catalog.report.values import mapping, show_bytes
from lockstep.catalog.run import Run
from lockstep.catalog.signature import Signature
from lockstep.catalog.verification import checkpoints, clock, counts, links, runnable_log
from lockstep.catalog.verification.record import Record, brief
from lockstep.files import one_line, open_plain, printable

__all__ = ["Digests", "Verdict", "verify"]
_USUAL_FOLDERS = {"data", "checkpoints", "metrics", "logs"}
_LINKED = ("data/", "start/", "checkpoints/")  # the store, and children that began with a checkpoint


class Digests:
    """SHA-256 of plain files; a file that many runs link to is read once, for as long as it stays as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, path: Path) -> str:
        """The digest. Raises OSError for what is no plain file."""
        with open_plain(path) as file:
            key = _identity(file.fileno())
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = _sha256(file)
        return found


@dataclass
class Verdict:
    """What verification has to say of one run; it is good when there are no findings."""

    run: Run
    status: str
    sealed: bool = False
    head: str | None = None
    findings: list[Finding] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    anchors: list[Anchor] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "run_id": self.run.run_id,
            "path": str(self.run.path),
            "status": self.status,
            "good": not self.findings,
            "sealed": self.sealed,
            "head": self.head,
            "findings": [each.as_dict() for each in self.findings],
            "proven": self.proven,
            "unproven": self.unproven,
            "notes": self.notes,
            "anchors": [each.__dict__ for each in self.anchors],
            "signatures": [each.as_dict() for each in self.signatures],
        }


def verify(
    run: Run,
    *,
    digests: Callable[[Path], str] | None = None,
    anchors: Sequence[Anchor] = (),
    signers: Path | None = None,
    must_be_signed: bool = False,
) -> Verdict:
    """Check every byte of a run against its seal, and its files against each other.

    ``signers`` is an allowed_signers file (ssh-keygen(1)); with ``must_be_signed`` a run that nobody in it
    has signed as it stands is a finding.
    """
    if why := unreadable(run):
        return Verdict(run, "unknown", findings=[Finding("events.jsonl", f"cannot be checked: {why}")])
    digest = digests or Digests()
    word = status.of(run).word
    record, verdict = Record(run), Verdict(run, word)
    running = word == "running"
    state = seal.check(run, digest) if not running else _of_running(run)
    verdict.sealed, verdict.head = state.current or bool(state.files and not state.went_on), state.head
    verdict.findings += state.findings
    verdict.findings += checkpoints.findings(record, digest, running)
    verdict.findings += links.findings(record, digest)
    if not running:
        verdict.findings += links.sealed_manifests(record, state.files)
        verdict.findings += runnable_log.findings(record, digest)
        verdict.findings += counts.findings(record, True)
        verdict.findings += checkpoints.model(record)
        verdict.findings += _odd_entries(run, state)
        verdict.findings += [] if state.files else _without_a_seal(record)
    _outside(verdict, record, state, anchors, signers, must_be_signed)
    verdict.findings = list(dict.fromkeys(verdict.findings))
    _in_words(verdict, record, state)
    return verdict


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(descriptor: int) -> tuple[int, ...]:
    """What stays the same as long as a file's bytes do."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _of_running(run: Run) -> seal.State:
    """Only the chain and its seals: a run that is running writes the rest at this moment."""
    return seal.State([of_history(sentence) for sentence in events.check_chain(run)], seal.heads_of(run))


def _odd_entries(run: Run, state: seal.State) -> list[Finding]:
    """What no manifest can list: folders that hold nothing, where a run has none."""
    found = []
    for folder, inner, files in os.walk(run.path):
        name = Path(folder).relative_to(run.path).as_posix()
        if name.startswith(".live"):
            inner.clear()
            continue
        left_by_a_death = Path(folder).name.startswith(TEMPORARY)  # lockstep doctor
        known = name in _USUAL_FOLDERS or left_by_a_death or not (state.files or "/" in name)
        if not inner and not files and not known:
            found.append(Finding(f"{name}/", "is an empty folder, which no run has: it was added"))
    return found


def _without_a_seal(record: Record) -> list[Finding]:
    """What no run has, sealed or not: anything but plain files, and an attempt without its input."""
    run, found = record.run, []
    for name, status_of in walk(run.path, {".live"}):
        if not stat.S_ISREG(status_of.st_mode) and not name.startswith(".live."):
            kind = "a symbolic link" if stat.S_ISLNK(status_of.st_mode) else "no plain file"
            found.append(Finding(name, f"is {kind}, which no run writes: it was put there"))
    begun = any(event.get("event") == "step_started" for event in record.history)
    if begun and not os.path.lexists(run.parameters):
        found.append(Finding("parameters.yaml", "is missing, and the history tells of steps that read it"))
    return found


def _outside(
    verdict: Verdict,
    record: Record,
    state: seal.State,
    anchors: Sequence[Anchor],
    signers: Path | None,
    must_be_signed: bool,
) -> None:
    """What anchors and signatures, which stand for the run's head, say against the run."""
    verdict.anchors = list(anchors)
    verdict.findings += anchor.compare(state, verdict.anchors)
    verdict.signatures = signature.check(record.run, record.run_id, state, signers)
    for each in verdict.signatures:
        if each.bad:
            file = f"signatures/{each.number}.json"
            verdict.findings.append(Finding(file, f"is no good signature: {each.bad}"))
    if must_be_signed and not any(each.who and each.current for each in verdict.signatures):
        problem = f"holds no signature of the run as it is by anybody in {signers}"
        verdict.findings.append(Finding("signatures", problem))


def _in_words(verdict: Verdict, record: Record, state: seal.State) -> None:
    """What the checks prove, and what they leave open."""
    proven = verdict.proven
    found_in = {finding.file.split("/")[0] for finding in verdict.findings}
    total = sum(entry["bytes"] for entry in state.files.values())
    if "events.jsonl" not in found_in:
        proven.append(f"the history: {len(record.history)} events, each with the digest of the one before")
    if state.current:
        proven.append(f"{len(state.files)} files, {show_bytes(total)}, byte for byte as they were sealed")
    count = len(checkpoints.folders(record))
    if count and not found_in & {"checkpoints", "start"}:
        proven.append(f"checkpoints: {count}, every byte as written, and loadable")
    for each in verdict.anchors if verdict.anchors and "events.jsonl" not in found_in else ():
        if each.head == state.head and state.current:
            proven.append(f"the seal is the one that was anchored ({each.where})")
    for sign in verdict.signatures:
        if sign.who and sign.current and not sign.bad:
            proven.append(f"{sign.who} signed this seal with key {sign.key}, dated {printable(sign.time)}")
    if record.run_id != record.run.run_id:
        recorded = one_line(brief(record.run_id))
        verdict.notes.append(f"the folder was renamed or copied: the run was recorded as {recorded}")
    _uncovered(verdict, record, state)
    _open_questions(verdict, record, state)


def _uncovered(verdict: Verdict, record: Record, state: seal.State) -> None:
    """What no seal covers."""
    unproven = verdict.unproven
    if verdict.status == "running":
        unproven.append("everything but its history and checkpoints: the run is still running")
    elif not state.heads and not state.files:
        known = {name.split(".")[0] for name in links.vouched_for(record)}  # parameters, provenance
        unproven.append(
            f"everything but its {''.join(f'{name}, ' for name in sorted(known))}checkpoints and the order of its "
            f"history, whose last line could be cut: the run is not sealed. lockstep seal {verdict.run.typed} "
            "seals it as it stands"
        )
    elif state.went_on:
        unproven.append(
            "what was written after the seal: another attempt began and has not been sealed. Files written "
            f"over or removed since: {', '.join(map(one_line, state.rewritten)) or 'none'}"
        )


def _open_questions(verdict: Verdict, record: Record, state: seal.State) -> None:
    unproven = verdict.unproven
    unproven += clock.sentences(record.history)[:5]
    vouched = [each for each in verdict.signatures if each.who and each.current and not each.bad]
    keys = [str(each.key) for each in verdict.signatures if not each.who and not each.bad]
    if keys:
        unproven.append(f"whose keys these are: {', '.join(keys)}. Name them with --signers FILE")
    if state.files and not verdict.anchors and not vouched:
        unproven.append(
            "that nobody who may write to this folder changed files, seal and history together: there is no "
            f"anchor and no known signature. lockstep seal {verdict.run.typed} --anchor (or --sign KEY) makes one"
        )
    if state.files and (passed_over := _passed_over(record.run)):
        unproven.append(f"what is in {', '.join(map(one_line, passed_over))}: no seal covers it")
    parent = mapping(record.created.get("parent"))
    name = parent.get("run_id")
    if parent and not (isinstance(name, str) and "/" not in name and (record.run.catalog / name).is_dir()):
        unproven.append(f"the parent's own record: {one_line(brief(str(name)))} is not in this catalog")
    shared = [
        name
        for name, found in walk(record.run.path, outside_the_seal(record.run.path))
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and not name.startswith(_LINKED)
    ]
    if shared:
        names = ", ".join(map(one_line, shared[:5]))
        unproven.append(
            f"who else writes to {names}: the same bytes have another name elsewhere (a hard link)"
        )


def _passed_over(run: Run) -> list[str]:
    """Folders of a run that is alive, and what a death left half-written: neither stands in a finished record."""
    found = [path for path in run.path.iterdir() if path.name.split(".")[1:2] == ["live"]]
    for place in ("", "data", "checkpoints", "metrics", "logs"):
        found += (run.path / place).glob(f"{TEMPORARY}*")
    return sorted(path.relative_to(run.path).as_posix() for path in found)
