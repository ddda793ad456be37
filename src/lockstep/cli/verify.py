"""`lockstep verify`: every byte of a run, or of all runs and the store, against what vouches for it."""

import argparse
import os
from pathlib import Path

from lockstep.catalog import anchor, git, verification
from lockstep.catalog.finding import Finding
from lockstep.catalog.run import Run, find, is_name
from lockstep.catalog.verification import Digests, Verdict, stores
from lockstep.catalog.verification.record import Record
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import UsageError

MOST_SHOWN = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="an id, the beginning of one, latest, or a run's folder"
    )
    parser.add_argument("--all", action="store_true", help="every run of the catalog, and its store")
    parser.add_argument(
        "--anchor",
        metavar="LINE",
        action="append",
        default=[],
        help="a line that lockstep seal --anchor print gave",
    )
    parser.add_argument(
        "--signers", metavar="FILE", type=Path,
        help="allowed_signers of ssh: one of them must have signed (else git's gpg.ssh.allowedSignersFile is asked)",
    )  # fmt: skip
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 1 where anything was."""
    if bool(arguments.run) == arguments.all:
        raise UsageError("name one run, or --all: lockstep verify RUN")
    if arguments.all and arguments.anchor:
        raise UsageError("--anchor stands for one run: lockstep verify RUN --anchor LINE")
    catalog = catalog_of(arguments)
    given = [anchor.given(text) for text in arguments.anchor]
    signers = _signers(arguments)
    if not arguments.all:
        found = _named(catalog, arguments.run)
        verdict = _verify(found, given, signers, bool(arguments.signers), _notes(found.path), Digests())
        if arguments.json:
            output.write_json(verdict.as_dict())
        else:
            _write(verdict)
        return int(bool(verdict.findings))
    return _verify_all(catalog, signers, arguments)


def _named(catalog: Path, name: str) -> Run:
    """The run that is meant; also one whose history, by which other commands find runs, was taken away."""
    try:
        return find(catalog, name)
    except UsageError:
        folder = Path(name) if os.sep in name else catalog / name
        left = [
            each
            for each in ("manifest.json", "parameters.yaml", "events.jsonl")
            if os.path.lexists(folder / each)
        ]
        if left and is_name(folder.resolve().name):
            return Run(folder.resolve())
        raise


def _verify_all(catalog: Path, signers: Path | None, arguments: argparse.Namespace) -> int:
    digests, notes = Digests(), _notes(catalog) if catalog.is_dir() else {}
    bad, told = 0, []
    # Not only what looks like a run from its history: a damaged one has to be found as well.
    for each in stores.runs(catalog):
        verdict = _verify(each, [], signers, bool(arguments.signers), notes, digests)
        bad += bool(verdict.findings)
        told.append(verdict.as_dict())
        if not arguments.json:
            _write_short(verdict)
    others = list(stores.findings(catalog, digests))
    if arguments.json:
        output.write_json({"runs": told, "findings": [each.as_dict() for each in others]})
    else:
        _write_findings(others)
        count = f"runs: {len(told)}, of which {bad} with findings"
        output.write_line(f"{count}; in the store and beside the runs: {len(others)}")
    return int(bool(bad or others))


def _verify(
    found: Run,
    given: list[anchor.Anchor],
    signers: Path | None,
    must_be_signed: bool,
    notes: dict[str, list[anchor.Anchor]],
    digests: Digests,
) -> Verdict:
    names = dict.fromkeys([found.run_id, Record(found).run_id])
    anchors = [*given, *(each for name in names for each in notes.get(name, []))]
    return verification.verify(
        found, digests=digests, anchors=anchors, signers=signers, must_be_signed=must_be_signed
    )


def _notes(folder: Path) -> dict[str, list[anchor.Anchor]]:
    """Anchors in the repository that the record lies in, and in the one that the user stands in."""
    return anchor.in_notes(list(dict.fromkeys([folder, Path.cwd()])))


def _signers(arguments: argparse.Namespace) -> Path | None:
    if arguments.signers:
        if not arguments.signers.is_file():
            raise UsageError(f"--signers {arguments.signers}: there is no such file")
        return Path(arguments.signers).absolute()
    configured = git.Git(Path.cwd()).line("config", "--type=path", "--get", "gpg.ssh.allowedSignersFile")
    return Path(configured) if configured and Path(configured).is_file() else None


def _write(verdict: Verdict) -> None:
    seal = "sealed" if verdict.sealed else "not sealed"
    output.write_line(f"run {verdict.run.shown}: {verdict.status}, {seal}")
    for heading, lines in (
        ("proven", verdict.proven),
        ("not proven", verdict.unproven),
        ("note", verdict.notes),
    ):
        for line in lines:
            output.write_line(f"  {heading:<12}{line}")
    _write_findings(verdict.findings)
    if verdict.findings:
        output.write_line(f"findings: {len(verdict.findings)}. This record is not as it was written")
    else:
        output.write_line("nothing was found against it")


def _write_short(verdict: Verdict) -> None:
    words = f"findings: {len(verdict.findings)}" if verdict.findings else "good"
    seal = "sealed" if verdict.sealed else "not sealed"
    output.write_line(f"{verdict.run.shown}  {verdict.status}, {seal}: {words}")
    _write_findings(verdict.findings)


def _write_findings(findings: list[Finding]) -> None:
    for finding in findings[:MOST_SHOWN]:
        output.write_line(f"  FOUND  {finding}")
    if len(findings) > MOST_SHOWN:
        output.write_line(f"  ... and {len(findings) - MOST_SHOWN} more: --json gives all")
