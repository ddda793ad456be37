"""`lockstep seal`: seal a run that ended without one, anchor its seal outside the folder, sign it."""

import argparse
from pathlib import Path

from lockstep.catalog import anchor, leftovers, seal, signature, status
from lockstep.catalog.report.values import at
from lockstep.catalog.run import Run, find
from lockstep.catalog.verification.record import Record
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import LockstepError, UsageError
from lockstep.files import one_line

NOTE, PRINT = "git-note", "print"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, latest, or a run's folder")
    parser.add_argument(
        "--anchor",
        nargs="?",
        const=NOTE,
        choices=(NOTE, PRINT),
        help=f"keep the seal's digest outside the folder: {NOTE} (the default) on the run's commit, or {PRINT} it",
    )
    parser.add_argument(
        "--sign",
        metavar="KEYFILE",
        type=Path,
        help="sign the seal with an ssh key (or its .pub, with an agent)",
    )
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Seal where it is wanting, then sign and anchor what was asked for."""
    found = find(catalog_of(arguments), arguments.run)
    if arguments.sign and not arguments.sign.is_file():
        raise UsageError(f"--sign {arguments.sign}: there is no such file")
    if arguments.sign:
        signature.require_keygen()
    record = Record(found)
    word = status.of(found).word
    descriptor = leftovers.take(found)
    try:
        said = {"run_id": record.run_id, **_seal(found, word)}
        if arguments.sign:
            said["key"] = signature.sign(found, record.run_id, said["head"], arguments.sign.absolute())
    finally:
        status.release(found, descriptor)
    if arguments.anchor == NOTE:
        said |= _note(record, said["head"])
    said["anchor"] = anchor.line_of(record.run_id, said["head"])
    _tell(said, arguments)
    return 0


def _seal(found: Run, word: str) -> dict[str, str]:
    """The head of a sound seal; the run is sealed as it stands where nothing covers it yet."""
    leftovers.clear(found)
    state = seal.check(found)
    if state.current:
        return {"done": "it is sealed already", "head": str(state.head)}
    # One that was killed between the manifest and its event lacks the event, and nothing else.
    unfinished = not state.heads and [each.file for each in state.findings] == ["events.jsonl"]
    if state.findings and not unfinished:
        listed = "\n".join(f"  {finding}" for finding in state.findings[:20])
        raise LockstepError(f"run {found.shown} does not verify, so nothing was sealed:\n{listed}")
    seal.seal(found)
    return {"done": f"sealed as it stands: {word}", "head": str(seal.head_of(found))}


def _note(record: Record, head: str) -> dict[str, str]:
    commit = at(record.provenance, "git", "commit")
    folders = [record.run.path, Path.cwd()]
    repository = anchor.repository_for(folders, commit if isinstance(commit, str) else None)
    new = anchor.write_note(repository, str(commit), record.run_id, head)
    where = f"git note ({anchor.REF}) on {str(commit)[:12]} in {repository.folder}"
    return {"note": where if new else f"{where}: it stood there already"}


def _tell(said: dict[str, str], arguments: argparse.Namespace) -> None:
    if arguments.json:
        output.write_json(said)
    elif arguments.anchor == PRINT and not arguments.sign:
        output.write_line(said["anchor"])  # alone, so that it can be taken by a script
    else:
        output.write_line(f"run {one_line(said['run_id'])}: {said['done']}")
        for name in ("key", "note"):
            if name in said:
                output.write_line(f"  {'signed with' if name == 'key' else 'anchored by'} {said[name]}")
        if arguments.anchor == NOTE:
            output.write_line(f"  git push does not take notes by itself: git push REMOTE {anchor.REF}")
        output.write_line(f"  {one_line(said['anchor'])}")
