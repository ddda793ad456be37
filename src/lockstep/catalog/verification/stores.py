"""The catalog's store against its own names, and what stands in a catalog that is no run."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from lockstep.catalog import status, store
from lockstep.catalog.access import unreadable
from lockstep.catalog.finding import Finding
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import RUN_ID, Run, is_name
from lockstep.catalog.verification.record import entries
from lockstep.files import digest_of, read_object

_SHA256 = re.compile(r"[0-9a-f]{64}")


def runs(catalog: Path) -> list[Run]:
    """Every folder with a history, by name; also those whose history no reader would take."""
    found = [Run(path) for path in entries(catalog.resolve()) if is_name(path.name) and path.is_dir()]
    return [
        run for run in found if not run.path.is_symlink() and (os.path.lexists(run.events) or unreadable(run))
    ]


def findings(catalog: Path, digest: Callable[[Path], str]) -> Iterator[Finding]:
    """Every stored file by its digest, every index entry by its identity, every entry that is no run."""
    for path in entries(store.folder(catalog.resolve())):
        name = f".store/{path.name}"
        if path.name == "identities" and path.is_dir():
            yield from _identities(path)
        elif path.name.startswith(".tmp-"):
            continue  # being written, or left by a death: lockstep doctor
        elif not _SHA256.fullmatch(path.name) or not stat.S_ISREG(path.lstat().st_mode):
            yield Finding(name, "is no stored file: it was added")
        else:
            try:
                if digest(path) != path.name:
                    yield Finding(name, "does not hold the bytes of its digest")
            except FileNotFoundError:
                continue  # lockstep gc removed it meanwhile
            except OSError as error:
                yield Finding(name, f"cannot be read: {error.strerror}")
    yield from _no_runs(catalog)


def _identities(folder: Path) -> Iterator[Finding]:
    for path in entries(folder):
        if path.name.startswith(".tmp-"):
            continue
        value, name = read_object(path, depth=2), f".store/identities/{path.name}"
        made_from = mapping(value.get("made_from"))
        # Pictures are known by what their files hold, and looked up by where those stand.
        looked_up = value.get("identity") == path.stem or isinstance(made_from.get("files"), str)
        try:
            right = path.suffix == ".json" and looked_up and value.get("identity") == digest_of(made_from)
        except (ValueError, RecursionError):
            right = False
        if not right and os.path.lexists(path):
            yield Finding(name, "is not the entry of its identity")


def _no_runs(catalog: Path) -> Iterator[Finding]:
    """Folders by the name of a run that have no history: it was removed, or a starter died at once."""
    for path in entries(catalog.resolve()):
        if not RUN_ID.fullmatch(path.name):
            continue
        run = Run(path)
        has_history = path.is_dir() and os.path.lexists(run.events)
        if not has_history and status.of(run).word != "running" and os.path.lexists(path):
            kind = "has no events.jsonl" if path.is_dir() else "is no run's folder"
            yield Finding(path.name, kind)
