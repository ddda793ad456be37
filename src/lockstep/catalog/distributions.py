"""The packages that are installed: each one's version, a digest of its files as its RECORD states them, its modules.

Read from the names of folders and from RECORD alone: `importlib.metadata` takes ten times as long.
"""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from lockstep import own_modules

_FOLDER = re.compile(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
LARGEST_RECORD = 16 << 20


def installed() -> dict[str, dict[str, Any]]:
    """By name as packages are compared by (lower case, with ``-``); of two with one name the one that is imported."""
    found: dict[str, dict[str, Any]] = {}
    for entry in dict.fromkeys(sys.path):
        try:
            folders = sorted(Path(entry or ".").iterdir())
        except OSError:
            continue
        for folder in folders:
            parts = _FOLDER.fullmatch(folder.name)
            if parts is None:
                continue
            name = re.sub(r"[-_.]+", "-", parts[1]).lower()
            if name not in found:
                found[name] = {"version": parts[2], **_contents(folder)}
    if "lockstep" in found:  # by what runs, wherever that stands: a checkout has one version for many states
        found["lockstep"]["sha256"] = _digest_of_lockstep()
    return dict(sorted(found.items()))


def _digest_of_lockstep() -> str:
    folder = Path(own_modules.LOCKSTEP)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)} {len(content)}\0".encode() + content)
    return digest.hexdigest()


def _contents(folder: Path) -> dict[str, Any]:
    """The digest of what RECORD says of a package's own files: equal for equal files, whoever installed them."""
    try:
        content = (folder / "RECORD").read_bytes()
    except OSError:
        return {"sha256": None, "modules": []}
    if len(content) > LARGEST_RECORD:
        return {"sha256": None, "modules": []}
    rows = [
        row
        for row in content.splitlines()
        if b"sha256=" in row
        and b".dist-info/" not in row
        and b".pth," not in row  # where an editable package stands: its modules are known by their bytes
        and not row.startswith((b"../", b"/", b"__editable__"))
    ]
    rows.sort()
    tops = {re.split(rb"[/,.]", row, maxsplit=1)[0].decode(errors="replace") for row in rows}
    digest = hashlib.sha256(b"\n".join(rows)).hexdigest() if rows else None
    return {"sha256": digest, "modules": sorted(tops - {""})}
