"""From a command line to a run: a new one, another attempt at one, or a child of one."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockstep import __version__, full_disk, own_modules, parameters
from lockstep.catalog import events, seal, status
from lockstep.catalog.run import Run, check_run_id, claim, find
from lockstep.errors import UsageError
from lockstep.files import read_json, write_atomically
from lockstep.launchers.client import Server
from lockstep.orchestration import changes, hints, inputs
from lockstep.orchestration.changes import Change
from lockstep.orchestration.display import Display
from lockstep.orchestration.parents import Parent, adopt, newest_checkpoint, refuse_what_cannot_follow
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
    asks: bool = False  # refuse what changed since the run to resume, unless it is accepted or kept
    accept: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    reproduces: str | None = None  # the run that the new one is to repeat
    read: Callable[[Path | None, Sequence[str], Run | None], Parameters] = read_sections
    example: str = "training.epochs"  # the key that asks for more epochs
    epilogue: Callable[[Run], Iterable[str]] | None = None  # lines below the closing table


_this_process = threading.Lock()  # a run changes the current folder, which a process has one of


def start(request: Request, server: Server, display: Display, began: float) -> int:
    """Make or continue a run; returns the exit status. Bad input is refused before anything is written."""
    if not _this_process.acquire(blocking=False):
        raise UsageError("another thread of this process is making a run: one at a time, or one a process")
    try:
        own_modules.forget_changed()  # of an earlier run in this process: a notebook, a loop over runs
        return _start(request, server, display, began)
    finally:
        _this_process.release()


def _start(request: Request, server: Server, display: Display, began: float) -> int:
    if request.run_id is not None:
        check_run_id(request.run_id)
    if request.tag is not None and not (request.tag.isprintable() and 0 < len(request.tag) <= LONGEST_TAG):
        raise UsageError(f"--tag: found {request.tag!r}, allowed: 1 to {LONGEST_TAG} printable characters")
    refuse_unreadable(request.catalog)
    if request.resume is not None:
        return resume(request, server, display, began)
    wanted = request.read(request.file, request.overrides, None)
    if request.reproduces is not None:
        repeated = find(request.catalog, request.reproduces)
        parent = Parent(repeated, repeated.start if repeated.start.is_dir() else None, "reproduced")
        return new_run(request, wanted, server, display, began, parent=parent)
    return new_run(request, wanted, server, display, began)


def refuse_unreadable(catalog: Path) -> None:
    """Raise UsageError for a place in which torch and safetensors could open no file."""
    try:
        os.fsencode(catalog).decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"{catalog}: a folder on this path has a name that is not UTF-8, and safetensors opens no file there; "
            "rename the folder, or keep the runs elsewhere: --catalog with an absolute path"
        ) from None


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
    server.prepare(wanted.distributed.start_method, request.folder, wanted.distributed.strategy.name)
    inherited = inputs.inherited_weights(parent.run, wanted) if parent else None
    repeated = parent.run if parent is not None and parent.kind == "reproduced" else None
    inputs.require(wanted, request.folder, inherited, repeated)
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
    if inherited is not None:
        with full_disk.needing(run.path / inherited.name, inherited.stat().st_size):
            shutil.copyfile(inherited, run.path / inherited.name)
    display.line(f"lockstep  run {run.shown}{parent.in_words() if parent else ''}", "bold")
    session = Session(run, display, request.folder, server, 1, began, repeats=repeated)
    return carry_out(session, request, request.tag, origin, descriptor)


def resume(request: Request, server: Server, display: Display, began: float) -> int:
    """Another attempt where nothing is changed, else a new run that starts from the old one's checkpoint."""
    run = find(request.catalog, str(request.resume))
    now = status.of(run)
    if now.word == "running":
        raise UsageError(f"run {run.shown} is running (pid {now.pid}): it cannot be resumed before it ends")
    if not run.parameters.is_file():
        raise UsageError(
            f"run {run.shown} ended before its parameters were written: there is nothing to resume"
        )
    before = parameters.read(run.parameters, [])
    wanted = request.read(request.file, request.overrides, run)
    asked_for = bool(parameters.difference(before, wanted) or request.run_id)
    if now.word == "succeeded" and not asked_for and not request.accept:
        return nothing_to_resume(request, run, before, display)
    found = what_changed(request, run, before, wanted)
    if any(change.kind == "parameters" for change in found):
        again = changes.file_and_overrides(run, request.folder)
        assert again is not None
        wanted = parameters.read(again[0], [*again[1], *request.overrides])
    difference = parameters.difference(before, wanted)
    if difference or request.run_id or any(change.kind == "data" for change in found):
        parent = parent_for(run, before, wanted, found, display)
        return new_run(request, wanted, server, display, began, parent=parent)
    if now.word == "succeeded":
        return nothing_to_resume(request, run, before, display)
    server.prepare(wanted.distributed.start_method, request.folder, wanted.distributed.strategy.name)
    descriptor = status.hold(run)
    history = events.read(run)
    attempt = sum(event["event"] == "started" for event in history) + 1
    created = next((event for event in history if event["event"] == "created"), {})
    display.line(f"lockstep  run {run.shown}, attempt {attempt} (it was {now.word})", "bold")
    if found:
        events.append(run, "changed", **changes.recorded(attempt, found))
        for each in found:
            display.line(f"  changed: {each.kind}: {each.words}")
    session = Session(run, display, request.folder, server, attempt, began)
    return carry_out(session, request, created.get("tag"), created.get("parent"), descriptor)


def parent_for(
    run: Run, before: Parameters, wanted: Parameters, found: Sequence[Change], display: Display
) -> Parent:
    """The run as the parent of a new one, from its newest checkpoint; says what differs."""
    parent, passed_over = newest_checkpoint(run)
    for message in passed_over:
        display.warn(message)
    refuse_what_cannot_follow(run, parent, before, wanted)
    others = [f"{each.kind}: {each.words}" for each in found if each.kind != "parameters"]
    for change in [*parameters.difference(before, wanted), *others]:
        display.line(f"  changed: {change}")
    return replace(parent, changes=[change.as_dict() for change in found])


def what_changed(request: Request, run: Run, before: Parameters, wanted: Parameters) -> list[Change]:
    """What changed since and was accepted; UsageError for the rest, where the command asks."""
    found = [changes.of_code(run, request.folder), changes.of_packages(run)]
    if request.asks:
        if "parameters" not in request.keep:
            found.insert(0, changes.of_parameters(run, request.folder, request.overrides))
        typed = before.data != wanted.data or before.seed != wanted.seed
        if "data" not in request.keep and not typed:
            found.insert(1, changes.of_data(run, before, request.folder))
    present = [change for change in found if change is not None]
    if request.asks:
        changes.refuse(present, request.accept, run, lambda more: typed_again(request, run, more))
    return present


def typed_again(request: Request, run: Run, more: Sequence[str]) -> str:
    """The command that resumes the run as it was asked for, with more options."""
    words = [*request.overrides]
    for option, values in (("--accept", request.accept), ("--keep", request.keep)):
        words += [word for value in sorted(values) for word in (option, value)]
    for option, value in (("--run-id", request.run_id), ("--tag", request.tag)):
        words += [f"{option}={value}"] if value is not None else []
    return hints.to_resume(request.argv, request.folder, request.catalog, run, *words, *more)


def nothing_to_resume(request: Request, run: Run, before: Parameters, display: Display) -> int:
    """A run that has succeeded: seal it where that was cut short, else say what would make a child of it."""
    if not is_sealed(run):
        descriptor = status.hold(run)
        seal.seal(run)
        status.release(run, descriptor)
        display.line(f"run {run.shown} had succeeded, but its record was not sealed yet: it is now")
        return 0
    display.line(
        f"run {run.shown} has succeeded already: nothing to resume. To go on from its last checkpoint,"
    )
    more = f"{request.example}={before.training.epochs * 2}"
    again = hints.to_resume(request.argv, request.folder, request.catalog, run, more)
    display.line(f"change something, for example: {again}")
    return 0


def is_sealed(run: Run) -> bool:
    """Whether the last thing in the history is the seal."""
    history = events.read(run)
    return bool(history) and history[-1]["event"] == "sealed"


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
            session.display.line(f"run     {session.run.shown}", "bold")
            session.display.line(f"        {session.run.path}")
            if request.reproduces is None:  # else the code stood in a folder that is removed now
                again = hints.to_resume(request.argv, request.folder, request.catalog, session.run)
                session.display.line(f"        to continue: {again}")
        return code
    finally:
        if session.server is not None:
            session.server.close()
        status.release(session.run, descriptor)
