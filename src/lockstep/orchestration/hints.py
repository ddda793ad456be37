"""Commands that a person is told to type next: whole ones, that run from where this one was started."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from lockstep.catalog.run import CATALOG, Run, project_root

LOCKSTEP = ("lockstep", "__main__.py")  # how sys.argv[0] ends where the command is our own


def to_resume(argv: Sequence[str], folder: Path, catalog: Path, run: Run, *words: str) -> str:
    """How to go on with a run, in the words that a command was started with: its script, its catalog.

    ``folder`` is where it was started. Within a notebook there is no script that could be started again.
    """
    script = folder / (argv[0] if argv else "")
    if script.name not in LOCKSTEP and script.suffix == ".py" and "site-packages" not in script.parts:
        command = [_from(folder, script), "--resume"]
    else:
        command = ["lockstep", "resume"]
    here = catalog.resolve()
    in_catalog = run.path.parent == here
    named = run.typed if in_catalog else shlex.quote(str(run.path))
    if in_catalog and here != (project_root(folder) / CATALOG).resolve():
        words = (*words, "--catalog", _from(folder, catalog))
    return " ".join([shlex.join(["uv", "run", *command]), named, *map(shlex.quote, words)])


def _from(folder: Path, path: Path) -> str:
    """A path as one types it in a folder: relative where it is inside."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
