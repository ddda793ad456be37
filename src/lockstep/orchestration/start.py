"""From a command line to a run: a new one, another attempt at one, or a child of one."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import __version__, parameters
from lockstep.catalog import events, seal, status
from lockstep.catalog.manifest import verify_folder
from lockstep.catalog.run import Run, check_run_id, claim, find
from lockstep.errors import CorruptRecord, UsageError
from lockstep.files import fsync_folder, read_json, sha256_of, write_atomically
from lockstep.launchers.client import Server
from lockstep.orchestration import inputs, plan
from lockstep.orchestration.display import Display
from lockstep.orchestration.session import Session
from lockstep.parameters import Parameters


def read_sections(file: Path | None, overrides: Sequence[str], resumed: Run | None) -> Parameters:
    """Parameters by sections: the file's, else those of the run to resume, else the defaults."""
    return parameters.read(file or (resumed.parameters if resumed else None), overrides)


LONGEST_TAG = 100


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    catalog: Path
    folder: Path
    argv: Sequence[str]
    file: Path | None = None
    overrides: Sequence[str] = ()
    run_id: str | None = None
    tag: str | None = None
    resume: str | None = None
    read: Callable[[Path | None, Sequence[str], Run | None], Parameters] = read_sections
    example: str = "training.epochs"  # the key that asks for more epochs
    epilogue: Callable[[Run], Iterable[str]] | None = None  # lines below the closing table


@dataclass(frozen=True)
class Parent:
    """Another run, and the checkpoint of it that a new run starts from (None: it left none that is valid)."""

    run: Run
    checkpoint: Path | None

    def as_dict(self) -> dict[str, Any]:
        """What the record of the child keeps."""
        plan_of_run = plan.read(self.run.plan) or {}
        return {
            "run_id": self.run.run_id,
            "checkpoint": self.checkpoint.name if self.checkpoint else None,
            "manifest_sha256": sha256_of(self.checkpoint / "manifest.json") if self.checkpoint else None,
            "world_size": plan_of_run.get("world_size"),
            "threads_per_rank": plan_of_run.get("threads_per_rank"),
            "data_identity": (plan.read(self.run.data / "data.json") or {}).get("identity"),
        }


def start(request: Request, server: Server, display: Display, began: float) -> int:
    """Make or continue a run; returns the exit status. Bad input is refused before anything is written."""
    if request.run_id:
        check_run_id(request.run_id)
    if request.tag is not None and not (request.tag.isprintable() and 0 < len(request.tag) <= LONGEST_TAG):
        raise UsageError(f"--tag: found {request.tag!r}, allowed: 1 to {LONGEST_TAG} printable characters")
    if request.resume is not None:
        return resume(request, server, display, began)
    wanted = request.read(request.file, request.overrides, None)
    return new_run(request, wanted, server, display, began)


def new_run(
    request: Request,
    wanted: Parameters,
    server: Server,
    display: Display,
    began: float,
    *,
    parent: Parent | None = None,
) -> int:
    """Claim a folder, write the parameters, and make the first attempt."""
    server.prepare(wanted.distributed.start_method, request.folder)
    inputs.require(wanted, request.folder)
    run = claim(request.catalog, request.run_id)
    descriptor = status.hold(run)
    origin = parent.as_dict() if parent else None
    summary = {
        "dataset": wanted.data.name,
        "model": wanted.model.name,
        "strategy": wanted.distributed.strategy.name,
        "world_size": wanted.distributed.world_size,
    }
    events.append(
        run,
        "created",
        run_id=run.run_id,
        tag=request.tag,
        parent=origin,
        summary=summary,
        lockstep=__version__,
    )
    write_atomically(run.parameters, inputs.text_of(wanted))
    if parent is not None:
        adopt(run, parent)
    display.line(f"lockstep  run {run.run_id}{_origin(parent)}", "bold")
    session = Session(run, display, request.folder, server, 1, began)
    return carry_out(session, request, request.tag, origin, descriptor)


def _origin(parent: Parent | None) -> str:
    if parent is None:
        return ""
    if parent.checkpoint is None:
        return f"  child of {parent.run.run_id}, which left no valid checkpoint: from the beginning"
    return f"  from {parent.run.run_id} {parent.checkpoint.name}"


def resume(request: Request, server: Server, display: Display, began: float) -> int:
    """Another attempt where nothing is changed, else a new run that starts from the old one's checkpoint."""
    run = find(request.catalog, str(request.resume))
    now = status.of(run)
    if now.word == "running":
        raise UsageError(f"run {run.run_id} is running (pid {now.pid}): it cannot be resumed before it ends")
    if not run.parameters.is_file():
        raise UsageError(
            f"run {run.run_id} ended before its parameters were written: there is nothing to resume"
        )
    before = parameters.read(run.parameters, [])
    wanted = request.read(request.file, request.overrides, run)
    changes = parameters.difference(before, wanted)
    if changes or request.run_id:
        parent, passed_over = newest_checkpoint(run)
        for message in passed_over:
            display.warn(message)
        refuse_what_cannot_follow(run, parent, before, wanted)
        for change in changes:
            display.line(f"  changed: {change}")
        return new_run(request, wanted, server, display, began, parent=parent)
    if now.word == "succeeded" and not is_sealed(run):
        descriptor = status.hold(run)
        seal.seal(run)
        status.release(run, descriptor)
        display.line(f"run {run.run_id} had succeeded, but its record was not sealed yet: it is now")
        return 0
    if now.word == "succeeded":
        display.line(
            f"run {run.run_id} has succeeded already: nothing to resume. To go on from its last checkpoint,"
        )
        more = f"{request.example}={before.training.epochs * 2}"
        display.line(f"change something, for example: --resume {run.run_id} {more}")
        return 0
    server.prepare(wanted.distributed.start_method, request.folder)
    descriptor = status.hold(run)
    history = events.read(run)
    attempt = sum(event["event"] == "started" for event in history) + 1
    created = next((event for event in history if event["event"] == "created"), {})
    display.line(f"lockstep  run {run.run_id}, attempt {attempt} (it was {now.word})", "bold")
    session = Session(run, display, request.folder, server, attempt, began)
    return carry_out(session, request, created.get("tag"), created.get("parent"), descriptor)


def is_sealed(run: Run) -> bool:
    """Whether the last thing in the history is the seal."""
    history = events.read(run)
    return bool(history) and history[-1]["event"] == "sealed"


def newest_checkpoint(run: Run) -> tuple[Parent, list[str]]:
    """The newest checkpoint of a run that verifies, its own or the one it started from; what was passed over."""
    passed_over: list[str] = []
    for path in [*sorted(run.checkpoints.glob("step-*"), reverse=True), run.start]:
        if not path.is_dir():
            continue
        findings = verify_folder(path)
        if not findings:
            return Parent(run, path), passed_over
        passed_over.append(f"passed over: checkpoint {path.name} is damaged ({'; '.join(findings)})")
    return Parent(run, None), passed_over


def refuse_what_cannot_follow(run: Run, parent: Parent, before: Parameters, wanted: Parameters) -> None:
    """Refuse early, with nothing written, what setup_distributed would refuse later."""
    decided = plan.read(run.plan)
    if (
        parent.checkpoint is None
        or decided is None
        or before.data != wanted.data
        or before.seed != wanted.seed
    ):
        return
    samples = decided["splits"]["train"]
    steps_per_epoch = -(-samples // wanted.training.global_batch_size)
    state = read_json(parent.checkpoint / "state.json")
    complaint = plan.start_complaint(state, steps_per_epoch, steps_per_epoch * wanted.training.epochs)
    if complaint:
        raise UsageError(complaint)


def adopt(run: Run, parent: Parent) -> None:
    """Give the parent's checkpoint a name in the child, so that the child's folder is whole by itself."""
    if parent.checkpoint is None:
        return
    run.start.mkdir()
    for file in parent.checkpoint.iterdir():
        try:
            os.link(file, run.start / file.name)
        except OSError:
            shutil.copy2(file, run.start / file.name)
    fsync_folder(run.start)
    if verify_folder(run.start):
        raise CorruptRecord(f"{parent.checkpoint} changed while it was copied")


def carry_out(
    session: Session, request: Request, tag: str | None, parent: dict[str, Any] | None, descriptor: int
) -> int:
    """The attempt itself, the closing table, and giving the lock back."""
    from lockstep.orchestration import execute

    try:
        code = execute.attempt(session, request.argv, tag, parent)
        if code == 0:
            session.display.closing(
                session.run, read_json(session.run.results), execute.step_seconds(session)
            )
            session.display.line(f"        {time.monotonic() - session.began:.1f} s in all")
            for line in request.epilogue(session.run) if request.epilogue else ():
                session.display.line(line)
        else:
            session.display.line(f"run     {session.run.run_id}", "bold")
            session.display.line(f"        {session.run.path}")
            session.display.line(f"        to continue: {command(request)} --resume {session.run.run_id}")
        return code
    finally:
        if session.server is not None:
            session.server.close()
        status.release(session.run, descriptor)


def command(request: Request) -> str:
    """How the user started this, for the message that says how to go on."""
    script = Path(request.argv[0] if request.argv else "")
    if script.name == "lockstep":
        return "uv run lockstep run"
    inside = script.is_absolute() and script.is_relative_to(request.folder)
    return f"uv run {script.relative_to(request.folder) if inside else script}"
