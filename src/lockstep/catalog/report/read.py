"""What a run's folder holds for the report. Any file may be absent, torn or hostile: that becomes a gap."""

import json
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep import files
from lockstep.catalog.manifest import parse_manifest
from lockstep.catalog.report.steps import Steps
from lockstep.catalog.report.steps import read as read_steps
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run
from lockstep.catalog.status import Status

LARGEST_FILE_BYTES = 64 << 20  # far above any real one; a page is not the place for more


@dataclass(frozen=True)
class Record:
    """The run's files as they were found, and one sentence for each that could not be used.

    ``state`` is how the run stands now; None on the page that the run itself writes, before its end.
    ``sealed`` is size and digest of each file by name, as the seal has them; empty before there is one.
    """

    run: Run
    results: dict[str, Any]
    provenance: dict[str, Any]
    plan: dict[str, Any]
    events: list[dict[str, Any]]
    parameters: str
    gaps: tuple[str, ...]
    state: Status | None = None
    steps: Steps = field(default_factory=Steps)
    sealed: dict[str, Any] = field(default_factory=dict)


def load(run: Run, state: Status | None = None) -> Record:
    """Read every input of the report. Raises nothing for what the files hold."""
    gaps: list[str] = []
    steps = read_steps(run)
    if steps.share_read < 1:
        gaps.append(
            f"of {steps.last[-1]:,} steps {steps.steps_read:,} were read, spread evenly, because the metrics "
            "are large: a spike in the others is not on this page."
        )
    return Record(
        run=run,
        results=_object(run, run.results, "no measured figures", gaps),
        provenance=_object(run, run.provenance, "what made this run is not known", gaps),
        plan=_object(run, run.plan, "the plan of ranks and batches is not known", gaps),
        events=_lines(run, run.events, "the run's history is not known", gaps),
        parameters=_text(run, run.parameters, "the parameters are not known", gaps),
        gaps=tuple(gaps),
        state=state,
        steps=steps,
        sealed=_sealed(run) if state is not None else {},
    )


def _sealed(run: Run) -> dict[str, Any]:
    if not run.manifest.exists():
        return {}
    content = _bytes(run, run.manifest, "", [])
    manifest = parse_manifest(content) if content is not None else None
    return manifest["files"] if manifest is not None else {}


def _bytes(run: Run, path: Path, loss: str, gaps: list[str]) -> bytes | None:
    """A regular file's content. A link that leads out of the folder is not followed: a page gets shared."""
    name = path.relative_to(run.path)
    try:
        inside = files.contained(name, run.path)
        about = inside.stat()
        if not stat.S_ISREG(about.st_mode):
            problem = "is not a file"
        elif about.st_size > LARGEST_FILE_BYTES:
            problem = f"has {about.st_size:,} bytes, more than this page reads"
        else:
            return inside.read_bytes()
    except FileNotFoundError:
        problem = "is missing"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        problem = "leads out of the run's folder"
    gaps.append(f"{name} {problem}: {loss}.")
    return None


def _object(run: Run, path: Path, loss: str, gaps: list[str]) -> dict[str, Any]:
    content = _bytes(run, path, loss, gaps)
    if content is None:
        return {}
    value = _parsed(content)
    if not isinstance(value, dict):
        gaps.append(f"{path.relative_to(run.path)} is torn or not a JSON object: {loss}.")
    return mapping(value)


def _lines(run: Run, path: Path, loss: str, gaps: list[str]) -> list[dict[str, Any]]:
    content = _bytes(run, path, loss, gaps)
    if content is None:
        return []
    values = [_parsed(line) for line in content.split(b"\n") if line.strip()]
    found = [value for value in values if isinstance(value, dict)]
    if len(found) < len(values) or not found:
        torn = len(values) - len(found)
        gaps.append(f"{path.relative_to(run.path)}: {torn} torn lines passed over, {len(found)} read.")
    return found


def _text(run: Run, path: Path, loss: str, gaps: list[str]) -> str:
    content = _bytes(run, path, loss, gaps)
    return "" if content is None else content.decode(errors="replace")


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # RecursionError: brackets nested thousands deep
        return None
