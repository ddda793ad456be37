"""What can be wrong beside the runs: the store, tombstones, removals that a death cut short."""

import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lockstep.catalog import collect, store, tombstones
from lockstep.catalog.diagnosis.ailment import Ailment, is_settled, removal
from lockstep.catalog.leftovers import TEMPORARY
from lockstep.catalog.lineage import TOMBSTONES
from lockstep.catalog.manifest import digest_of_file
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.verification.record import entries
from lockstep.errors import LockstepError
from lockstep.files import read_object, set_mode

_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def examine(catalog: Path) -> Iterator[Ailment]:
    """Everything in a catalog that is no run's folder."""
    folder = store.folder(catalog)
    for place in (catalog, folder, folder / "identities", catalog / TOMBSTONES):
        for path in entries(place):
            if path.name.startswith(TEMPORARY) and is_settled(path):
                yield removal(path, "was left half-written by a process that is gone")
    if any(path.is_dir() and not path.is_symlink() for path in catalog.glob(f"{collect.REMOVING}*")):
        yield Ailment(str(catalog), "a removal was cut short", "", lambda: _finish(catalog))
    for path in tombstones.paths(catalog):
        if read_object(path).get("format") != tombstones.FORMAT:
            yield Ailment(str(path), "is no tombstone that can be read")
    yield from _stored(folder)
    yield from _identities(folder)


def _finish(catalog: Path) -> str:
    try:
        with collect.alone(catalog):
            return f"finished removing {', '.join(collect.finish(catalog)) or 'nothing'}"
    except LockstepError as error:
        return str(error)


def _stored(folder: Path) -> Iterator[Ailment]:
    for path in entries(folder):
        if path.name == "identities" or path.name.startswith(TEMPORARY):
            continue
        try:
            found = path.lstat()
            if not re.fullmatch(r"[0-9a-f]{64}", path.name) or not stat.S_ISREG(found.st_mode):
                yield Ailment(str(path), "is no stored file, and was not put there by us")
            elif digest_of_file(path) != path.name:
                problem = "does not hold the bytes of its digest"
                advice = "Runs that link to it are damaged as well (lockstep verify --all); the data is prepared anew"
                yield Ailment(str(path), problem, advice, partial(_remove_damaged, path))
            elif found.st_mode & _WRITABLE:
                yield Ailment(str(path), "can be written to", "", partial(_protect, path))
        except OSError:
            if os.path.lexists(path):
                yield Ailment(str(path), "cannot be read")


def _remove_damaged(path: Path) -> str:
    if digest_of_file(path) == path.name:
        return f"left {path} alone: it is whole by now"
    path.unlink()
    return f"removed {path}"


def _protect(path: Path) -> str:
    set_mode(path, 0o444)
    return f"made {path} read-only"


def _identities(folder: Path) -> Iterator[Ailment]:
    for path in entries(folder / "identities"):
        if path.name.startswith(TEMPORARY):
            continue
        files = mapping(read_object(path, depth=2).get("files"))
        digests = [str(at(entry, "sha256")) for entry in files.values()]
        if not digests or not all((folder / digest).is_file() for digest in digests):
            yield removal(path, "names data that is not in the store", "The data is prepared anew")
