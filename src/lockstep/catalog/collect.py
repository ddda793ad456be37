"""`lockstep gc`: which runs may go, and removing them so that a death in between leaves no half run.

A run goes in this order: its lock is taken, its folder renamed to `.removing-<run_id>-...` (from then on no reader
sees a run), its tombstone written, its files removed. What a death left of that is finished by the next gc.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep import linux
from lockstep.catalog import events, leftovers, listing, status, store, tombstones
from lockstep.catalog.manifest import walk
from lockstep.catalog.query_values import instant
from lockstep.catalog.report.values import at, mapping, moment
from lockstep.catalog.run import Run, is_name, run_ids
from lockstep.errors import UsageError
from lockstep.files import fsync_folder, read_object

REMOVING = ".removing-"
_LEFT = re.compile(r"\.removing-(.+)-[0-9a-f]{12}")
COLLECTABLE = ("succeeded", "failed", "interrupted", "killed")


@dataclass(frozen=True)
class Criteria:
    """Which runs may go: those that meet all that is given. Of those of the statuses and the tag, the newest
    ``keep_last`` stay; ``older_than`` is a length of time or a date, compared with a run's last event."""

    older_than: str | None = None
    keep_last: int | None = None
    statuses: Sequence[str] = ()
    tag: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What was asked for, for the tombstone."""
        every = {"older_than": self.older_than, "keep_last": self.keep_last, "tag": self.tag}
        every["status"] = ",".join(self.statuses) or None
        return {key: value for key, value in every.items() if value is not None}


@dataclass
class Plan:
    """What would go. ``kept`` says of runs that were chosen why they stay nevertheless."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    known: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        keys = ("run_id", "status", "cause", "tag", "created", "bytes")
        return {
            "runs": [{key: row.get(key) for key in keys} for row in self.runs],
            "kept": self.kept,
            "stored": self.stored,
            "unfinished": self.unfinished,
            "freed_bytes": self.freed_bytes,
        }


def plan(catalog: Path, criteria: Criteria, now: float) -> Plan:
    """Choose; nothing is changed. Raises UsageError for criteria that mean nothing."""
    catalog = catalog.resolve()
    rows = listing.rows(catalog)
    made = Plan(known=set(run_ids(catalog)))
    chosen = {row["run_id"]: row for row in _chosen(catalog, rows, criteria, now)} if criteria.given else {}
    for row in chosen.values():
        if row["status"] not in COLLECTABLE:
            made.kept[row["run_id"]] = f"it is {row['status']}"
    for run_id in made.kept:
        del chosen[run_id]
    parents = {row["run_id"]: row["parent"] for row in rows}
    for row in rows:
        if row["run_id"] not in chosen:
            _spare_ancestors(row["run_id"], parents, chosen, made.kept)
    made.runs = list(chosen.values())
    made.unfinished = sorted(path.name for path in catalog.glob(f"{REMOVING}*"))
    _weigh(catalog, made)
    return made


def _chosen(
    catalog: Path, rows: list[dict[str, Any]], criteria: Criteria, now: float
) -> Iterator[dict[str, Any]]:
    unknown = sorted(set(criteria.statuses) - set(COLLECTABLE))
    if unknown:
        raise UsageError(f"--status {', '.join(unknown)}: allowed are {', '.join(COLLECTABLE)}")
    if criteria.keep_last is not None and criteria.keep_last < 0:
        raise UsageError(f"--keep-last {criteria.keep_last}: 0 or more are allowed")
    limit = instant(criteria.older_than, now, "--older-than") if criteria.older_than is not None else None
    of_kind = [
        row
        for row in rows
        if (not criteria.statuses or row["status"] in criteria.statuses)
        and (criteria.tag is None or row["tag"] == criteria.tag)
    ]
    for row in of_kind[criteria.keep_last or 0 :]:
        last = _last_event(Run(catalog / row["run_id"])) if limit is not None else None
        # A run whose age nobody can tell is not old.
        if limit is None or (last is not None and last < limit):
            yield row


def _last_event(run: Run) -> float | None:
    times = [found for event in events.read(run) if (found := moment(event.get("time"))) is not None]
    return max(times, default=None)


def _spare_ancestors(
    run_id: str, parents: dict[str, str | None], chosen: dict[str, dict[str, Any]], kept: dict[str, str]
) -> None:
    child, seen = run_id, {run_id}
    while (parent := parents.get(child)) and parent not in seen:
        seen.add(parent)
        if chosen.pop(parent, None) is not None:
            kept[parent] = f"{child} came from it, and stays"
        child = parent


def _weigh(catalog: Path, made: Plan) -> None:
    """How many bytes go, each counted where its last name goes; and the stored files that nobody links to then."""
    names: dict[tuple[int, int], int] = {}
    found: dict[tuple[int, int], os.stat_result] = {}
    for row in made.runs:
        row["bytes"] = 0
        for _, each in walk(catalog / row["run_id"]):
            key = (each.st_dev, each.st_ino)
            names[key], found[key] = names.get(key, 0) + 1, each
            row["bytes"] += each.st_size
    unlinked = []
    for path in _objects(catalog):
        each = path.lstat()
        key = (each.st_dev, each.st_ino)
        names[key], found[key] = names.get(key, 0) + 1, each
        if names[key] >= each.st_nlink:
            unlinked.append(path.name)
    going = {row["run_id"] for row in made.runs}
    wanted = _still_wanted(catalog, made.known - going) if unlinked else set()
    made.stored = [] if wanted is None else [digest for digest in unlinked if digest not in wanted]
    stays = {digest for digest in unlinked if digest not in made.stored}
    for digest in stays:
        each = (store.folder(catalog) / digest).lstat()
        names[each.st_dev, each.st_ino] -= 1
    made.freed_bytes = sum(found[key].st_size for key in found if names[key] >= found[key].st_nlink)


def _objects(catalog: Path) -> list[Path]:
    folder = store.folder(catalog)
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name))


def _still_wanted(catalog: Path, kept: set[str]) -> set[str] | None:
    """Digests that the remaining runs' data has, linked or copied; None while a run may be about to link one."""
    wanted: set[str] = set()
    for run_id in kept:
        run = Run(catalog / run_id)
        described = read_object(run.data / "data.json", depth=2)
        if not described and status.of(run).word == "running":
            return None
        wanted |= {str(at(entry, "sha256")) for entry in mapping(described.get("files")).values()}
    return wanted


@contextlib.contextmanager
def alone(catalog: Path) -> Iterator[None]:
    """One collector at a time. Raises UsageError where there is another."""
    descriptor = os.open(catalog, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another lockstep gc is at work in {catalog}: wait for its end") from None
        except OSError as error:
            linux.refuse_without_locks(error, catalog)
            raise
        yield
    finally:
        os.close(descriptor)


def apply(catalog: Path, made: Plan, criteria: Criteria) -> Iterator[str]:
    """Remove what was planned; a sentence for each run that was spared after all. The caller holds ``alone``."""
    catalog = catalog.resolve()
    finish(catalog)
    going = {row["run_id"]: row for row in made.runs}
    parents = {row["run_id"]: row["parent"] for row in made.runs}
    stays: dict[str, str] = {}
    for row in _children_first(made.runs):
        run = Run(catalog / row["run_id"])
        spared = stays.get(run.run_id) or _remove(run, made, criteria, row)
        if spared:
            if run.path.is_dir():
                _spare_ancestors(run.run_id, parents, going, stays)
            yield f"{run.shown} stays: {spared}"
    wanted = _still_wanted(catalog, set(run_ids(catalog)))
    for digest in made.stored if wanted is not None else ():
        stored = store.folder(catalog) / digest
        with contextlib.suppress(FileNotFoundError):
            if digest not in (wanted or ()) and stored.lstat().st_nlink == 1:
                stored.unlink()
    _forget(catalog)


def _children_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every run before its parent, whatever their clocks said: what spares a run spares where it came from."""
    rest = {row["run_id"]: row for row in reversed(rows)}
    ordered: list[dict[str, Any]] = []
    while rest:
        line = [rest.pop(next(iter(rest)))]
        while parent := rest.pop(line[-1]["parent"], None):
            line.append(parent)
        ordered += reversed(line)
    return ordered[::-1]


def _remove(run: Run, made: Plan, criteria: Criteria, row: dict[str, Any]) -> str | None:
    """Remove one run; why not, where something has changed since it was chosen."""
    try:
        descriptor = leftovers.take(run)
    except UsageError as error:
        return str(error)
    except FileNotFoundError:
        return "it is gone already"
    try:
        for new in set(run_ids(run.catalog)) - made.known:
            child = next(iter(events.read(Run(run.catalog / new))), {})
            if at(child, "parent", "run_id") == run.run_id:
                return f"{new} has come from it meanwhile"
        aside = run.catalog / f"{REMOVING}{run.run_id}-{secrets.token_hex(6)}"
        # The lock that is held here makes a run that was killed look like a running one.
        state = {"status": row["status"], "cause": row["cause"]}
        tombstone = tombstones.make(run, criteria.given) | state
        run.path.rename(aside)
        fsync_folder(run.catalog)
        tombstones.write(run.catalog, tombstone, run.run_id)
        shutil.rmtree(aside)
    finally:
        os.close(descriptor)
    return None


def finish(catalog: Path) -> list[str]:
    """Finish removals that a death cut short; returns the ids of their runs. The caller holds ``alone``."""
    done = []
    for path in sorted(catalog.glob(f"{REMOVING}*")):
        named = _LEFT.fullmatch(path.name)
        run_id = named.group(1) if named else ""
        if not is_name(run_id) or path.is_symlink() or not path.is_dir():
            continue
        run = Run(path)
        created = next((event.get("time") for event in events.read(run)), None)
        told = read_object(tombstones.path_of(catalog, run_id))
        # Files go only after the tombstone is written: a history that is gone has been told of.
        if created is not None and told.get("created") != created:
            tombstone = tombstones.make(run, {"unfinished": "a removal that was cut short"})
            tombstones.write(catalog, tombstone, run_id)
        shutil.rmtree(path)
        done.append(run_id)
    return done


def _forget(catalog: Path) -> None:
    """Drop what the index says of data that is not stored any more."""
    folder = store.folder(catalog) / "identities"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        files = mapping(read_object(path, depth=2).get("files"))
        digests = [str(at(entry, "sha256")) for entry in files.values()]
        if not all((store.folder(catalog) / digest).is_file() for digest in digests):
            path.unlink(missing_ok=True)
