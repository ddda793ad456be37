"""imports.json: the modules that a run's processes imported, the user's own by digest, installed ones by name.

Every rank leaves a note in ``.live`` before its first step and another at its end; the pipeline adds what it has
imported itself and puts them together when the ranks have ended, however they did.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from lockstep import own_modules
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run
from lockstep.files import read_object, write_json

_NOTE = re.compile(r"imports-\d{1,6}\.json")
MOST_MODULES = 5000


def file_of(run: Run, attempt: int) -> Path:
    """Where the imports of an attempt are recorded."""
    return run.path / ("imports.json" if attempt == 1 else f"imports.attempt-{attempt}.json")


def note(run: Run, rank: int, ended: bool = False) -> None:
    """Leave a note of what this rank has imported so far. On a full disk the ranks have other worries."""
    with contextlib.suppress(OSError):
        write_json(run.live / f"imports-{rank}.json", {**_here(), "ended": ended})


def gather(run: Run, attempt: int, ranks: int) -> list[str]:
    """Write the record of an attempt; returns a sentence for each module that was not the same everywhere."""
    notes = [read_object(path) for path in sorted(run.live.iterdir()) if _NOTE.fullmatch(path.name)]
    modules: dict[str, dict[str, Any]] = {}
    other: set[str] = set()
    packages: set[str] = set()
    for each in [*notes, _here()]:  # what the ranks have imported is what trained
        packages |= {name for name in each.get("packages", []) if isinstance(name, str)}
        for name, module in mapping(each.get("modules")).items():
            if modules.setdefault(name, module).get("sha256") != mapping(module).get("sha256"):
                other.add(name)
    record = {
        "format": 1,
        "attempt": attempt,
        "ranks": len(notes),
        "complete": len(notes) == ranks and all(each.get("ended") is True for each in notes),
        "modules": {name: modules[name] for name in sorted(modules)},
        "packages": sorted(packages),
        "other": sorted(other),
    }
    write_json(file_of(run, attempt), record)
    return [
        f"{modules[name].get('file')} was changed while the run started: its processes have imported different "
        "states of it"
        for name in sorted(other)
    ]


def read(run: Run, attempt: int = 1) -> dict[str, Any]:
    """The record of an attempt; empty where there is none."""
    return read_object(file_of(run, attempt))


def _here() -> dict[str, Any]:
    modules = {}
    for name, file in sorted(own_modules.own().items())[:MOST_MODULES]:
        digest = own_modules.loaded_digest(name) or own_modules.digest_of(file)
        if digest is not None:
            modules[name] = {"file": str(file).encode("utf-8", "backslashreplace").decode(), "sha256": digest}
    return {"modules": modules, "packages": own_modules.from_packages()}
