"""Where a run comes from and what came of it: parents up to the first, children by looking at every run.

A parent stands in the child's history only, so that no finished record is ever written to again. Of a run that
was collected a tombstone may tell (.catalog/.tombstones/<run_id>.json); what its record said of a parent is
then read from there.
"""

from pathlib import Path
from typing import Any

from lockstep.catalog import events, listing
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run, is_name
from lockstep.files import read_object

TOMBSTONES = ".tombstones"
MOST_ANCESTORS = 100
MOST_CHILDREN = 200


def of(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Ancestors, the nearest first, and children, the newest first, each with how it stands now.

    Each has ``run_id``, ``kind`` (resumed, reproduced, ...: how the younger came from the older), the
    ``checkpoint`` that the younger began with (None: from the beginning), ``created``, ``path`` and
    ``status``, which is also ``collected`` (a tombstone is left) or ``absent``.
    """
    rows = {row["run_id"]: row for row in listing.rows(run.catalog)}
    rows.pop(run.run_id, None)
    return {"ancestors": _ancestors(run, rows), "children": _children(run, rows)}


def parent_of(run: Run) -> dict[str, Any]:
    """What a run's history says of its parent; empty where it has none."""
    created = next((event for event in events.read(run) if event["event"] == "created"), {})
    return mapping(created.get("parent"))


def tombstone(catalog: Path, run_id: str) -> dict[str, Any]:
    """What is left of a run that was collected; empty where there is nothing."""
    if not is_name(run_id):
        return {}
    return read_object(catalog / TOMBSTONES / f"{run_id}.json", depth=2)


def _ancestors(run: Run, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    seen = {run.run_id}
    parent = parent_of(run)
    while (name := _name(parent)) and name not in seen and len(found) < MOST_ANCESTORS:
        seen.add(name)
        left = {} if name in rows else tombstone(run.catalog, name)
        found.append(_relative(name, parent, rows.get(name), bool(left)))
        parent = parent_of(Run(run.catalog / name)) if name in rows else _parent_in(left)
    return found


def _children(run: Run, rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for row in rows.values():
        if row["parent"] == run.run_id and len(found) < MOST_CHILDREN:
            child = Run(run.catalog / row["run_id"])
            found.append(_relative(row["run_id"], parent_of(child), row, False))
    for name in _tombstones(run.catalog):
        if name not in rows and len(found) < MOST_CHILDREN:
            parent = _parent_in(tombstone(run.catalog, name))
            if _name(parent) == run.run_id:
                found.append(_relative(name, parent, None, True))
    return found


def _relative(
    name: str, parent: dict[str, Any], row: dict[str, Any] | None, collected: bool
) -> dict[str, Any]:
    kind, checkpoint = parent.get("kind"), parent.get("checkpoint")
    return {
        "run_id": name,
        "kind": kind if isinstance(kind, str) and kind else "resumed",
        "checkpoint": checkpoint if isinstance(checkpoint, str) else None,
        "created": row["created"] if row else None,
        "status": row["status"] if row else "collected" if collected else "absent",
        "path": row["path"] if row else None,
    }


def _tombstones(catalog: Path) -> list[str]:
    folder = catalog / TOMBSTONES
    try:
        if folder.is_symlink():
            return []
        names = [path.name.removesuffix(".json") for path in folder.iterdir() if path.suffix == ".json"]
    except OSError:
        return []
    return sorted((name for name in names if is_name(name)), reverse=True)


def _parent_in(left: dict[str, Any]) -> dict[str, Any]:
    parent = left.get("parent")
    return {"run_id": parent} if isinstance(parent, str) else mapping(parent)


def _name(parent: dict[str, Any]) -> str:
    """The parent's id, where it is one: it becomes a path."""
    name = at(parent, "run_id")
    return name if isinstance(name, str) and is_name(name) else ""
