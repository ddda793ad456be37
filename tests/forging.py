"""An owner of a run's folder who changes it and writes everything that vouches for it anew, so that all agrees."""

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from lockstep.catalog import events
from lockstep.catalog.manifest import write_manifest
from lockstep.catalog.run import Run
from lockstep.catalog.seal import seal


def rewrite(path: Path, content: bytes | str) -> None:
    """Give a file other bytes, and leave other names of the old ones alone."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Read, change in place, write."""
    value = json.loads(path.read_bytes())
    change(value)
    rewrite(path, json.dumps(value, indent=2) + "\n")


def forge(run: Run, change_event: Callable[[dict], object] = lambda event: None) -> None:
    """Manifests of the checkpoints, the chain of the history, and the seal: all made to fit the folder as it is."""
    with mock.patch("os.fsync"):  # it need not survive a power cut
        _forge(run, change_event)


def _forge(run: Run, change_event: Callable[[dict], object]) -> None:
    for folder in [*run.checkpoints.glob("step-*"), run.start]:
        if folder.is_dir():
            (folder / "manifest.json").unlink(missing_ok=True)
            write_manifest(folder)
    history = events.read(run)
    run.events.unlink()
    run.manifest.unlink(missing_ok=True)
    for event in history:
        if event["event"] not in ("sealed", "signed"):
            change_event(event)
            fields = {key: value for key, value in event.items() if key not in events._RESERVED}
            events.append(run, event["event"], time=event["time"], **fields)
    seal(run)
