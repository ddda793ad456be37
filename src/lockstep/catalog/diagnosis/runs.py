"""What can be wrong with the folder of a run that is not running: each check looks, and touches nothing."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lockstep.catalog import events, leftovers, status
from lockstep.catalog.access import unreadable
from lockstep.catalog.diagnosis.ailment import Ailment, is_settled
from lockstep.catalog.manifest import verify_folder
from lockstep.catalog.run import Run
from lockstep.catalog.verification.record import entries
from lockstep.errors import LockstepError
from lockstep.files import fsync, open_plain, read_object, read_plain


def examine(run: Run) -> Iterator[Ailment]:
    """All that a death left in a run's folder. Nothing of a run that is running, here or perhaps elsewhere."""
    if why := unreadable(run):
        yield Ailment(str(run.path), f"cannot be looked at: {why}", "Its owner's lockstep doctor can")
        return
    word = status.of(run).word
    if word in ("running", "unknown"):
        return
    if not os.path.lexists(run.events):
        yield from _without_history(run)
        return
    yield from _live(run, word)
    for path in leftovers.temporary(run):
        name = path.relative_to(run.path).as_posix()
        kind = (
            "a checkpoint that was not finished" if name.startswith("checkpoints/") else "a half-written file"
        )
        yield Ailment(str(path), kind, "", _under_lock(run, partial(_remove, path)))
    last = [event["event"] for event in events.read(run)][-1:]
    sealed = last in (["sealed"], ["signed"])
    yield from _history(run, sealed)
    if not sealed:
        yield from _open_record(run)


def _open_record(run: Run) -> Iterator[Ailment]:
    """What no seal covers: verify finds the damage of sealed ones, to the byte."""
    for folder in entries(run.checkpoints):
        if folder.name.startswith("step-") and (found := verify_folder(folder)):
            advice = "Resuming passes it over, and begins with the one before"
            yield Ailment(str(folder), f"a damaged checkpoint ({'; '.join(found[:3])})", advice)
    if os.path.lexists(run.run_log) and read_object(run.run_log).get("run_id") != run.run_id:
        aside = run.run_log.with_name("run_log.damaged.json")
        mend = None if aside.exists() else _under_lock(run, lambda: _rename(run.run_log, aside))
        yield Ailment(
            str(run.run_log), "is no log of this run that can be read", "Resuming repeats all steps", mend
        )
    for path in entries(run.metrics):
        if path.suffix == ".jsonl" and (ailment := _metrics(run, path)):
            yield ailment


def _without_history(run: Run) -> Iterator[Ailment]:
    """A folder that was claimed by a process which died before its first event; or what is left of a run."""
    if not is_settled(run.path, 60.0):
        return  # it may be just beginning
    inside = [path for path in run.path.rglob("*") if not path.is_dir() or path.is_symlink()]
    rest = [path for path in inside if run.live not in path.parents]
    if rest:
        yield Ailment(str(run.path), "has files and no events.jsonl", "lockstep verify --all tells more")
    else:
        problem = "was begun by a process that died at once, and holds nothing"
        yield Ailment(str(run.path), problem, "", _under_lock(run, lambda: _remove(run.path), kept=False))


def _live(run: Run, word: str) -> Iterator[Ailment]:
    left = [path for path in (run.live, *run.path.glob(".live.*")) if os.path.lexists(path)]
    if left:
        problem = f"is left of a process that is gone (the run is {word})"
        # Whoever takes the lock clears up, and giving it back removes the rest.
        yield Ailment(str(left[0]), problem, "", _under_lock(run, lambda: f"removed {left[0]}"))


def _history(run: Run, sealed: bool) -> Iterator[Ailment]:
    try:
        content = read_plain(run.events, events.LONGEST_READ)
    except OSError as error:
        yield Ailment(str(run.events), f"cannot be read: {error.strerror}")
        return
    if content and not content.endswith(b"\n"):
        mend = None if sealed else _under_lock(run, lambda: _close_line(run))
        advice = f"It was sealed before: lockstep verify {run.typed}" if sealed else ""
        yield Ailment(str(run.events), "ends in the middle of a line", advice, mend)
    for sentence in events.check_chain(run):
        yield Ailment(str(run.events), sentence, f"It was edited: lockstep verify {run.typed}")


def _close_line(run: Run) -> str:
    """History is never rewritten: an event after the torn line says that it is torn, and vouches for it as it is."""
    events.append(
        run, "warning", message="the line above was cut short by the death of the process that wrote it"
    )
    return f"closed the torn line in {run.events} with a warning that says so"


def _metrics(run: Run, path: Path) -> Ailment | None:
    place, bad = 0, 0  # bytes up to the last whole line; lines that are none before that
    torn = False
    try:
        with open_plain(path, depth=2) as file:
            for line in file:
                whole = line.endswith(b"}\n") and line.startswith(b"{")
                bad += torn
                torn = not whole
                place += 0 if torn else len(line)
            size = file.tell()
    except OSError as error:
        return Ailment(str(path), f"cannot be read: {error.strerror}")
    if bad:
        return Ailment(str(path), f"lines that are no JSON objects stand before others: {bad}")
    if not torn:
        return None
    problem = f"ends in a torn line of {size - place} bytes, which no reader counts"
    return Ailment(str(path), problem, "", _under_lock(run, lambda: _cut(path, place, size)))


def _cut(path: Path, place: int, size: int) -> str:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != size:
            return f"left {path} alone: it has changed meanwhile"
        os.ftruncate(descriptor, place)
        fsync(descriptor)
    finally:
        os.close(descriptor)
    return f"cut the torn line of {size - place} bytes off {path}"


def _remove(path: Path) -> str:
    leftovers.remove(path)
    return f"removed {path}"


def _rename(path: Path, aside: Path) -> str:
    path.rename(aside)
    return f"put {path} aside as {aside.name}"


def _under_lock(run: Run, act: Callable[[], str], kept: bool = True) -> Callable[[], str]:
    """Do it as the one process that may write to the run, or say why not."""

    def mend() -> str:
        try:
            descriptor = leftovers.take(run) if kept else status.hold(run)
        except LockstepError as error:
            return f"left {run.path} alone: {error}"
        try:
            return act()
        finally:
            if run.live.exists():
                status.release(run, descriptor)
            else:
                os.close(descriptor)

    return mend
