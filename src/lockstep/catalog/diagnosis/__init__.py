"""`lockstep doctor`: what deaths and faults left in a catalog and on its machine, and mending what is safe to mend."""

import os
from collections.abc import Iterator
from pathlib import Path

from lockstep.catalog.diagnosis import machine, runs, stores
from lockstep.catalog.diagnosis.ailment import Ailment
from lockstep.catalog.run import RUN_ID, Run, is_name
from lockstep.catalog.verification.record import entries

__all__ = ["Ailment", "examine"]


def examine(catalog: Path) -> Iterator[Ailment]:
    """Everything that is found; nothing is changed by looking."""
    catalog = catalog.resolve()
    for path in entries(catalog):
        if _is_one(path) and path.is_dir() and not path.is_symlink():
            yield from runs.examine(Run(path))
    if catalog.is_dir():
        yield from stores.examine(catalog)
    yield from machine.examine(catalog)


def _is_one(path: Path) -> bool:
    """By its name, or by its history where it was given another name since."""
    return bool(RUN_ID.fullmatch(path.name)) or (
        is_name(path.name) and os.path.lexists(path / "events.jsonl")
    )
