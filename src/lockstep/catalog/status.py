"""What became of a run: derived from its history and from a held lock, never stored, so never out of date.

succeeded, failed, interrupted    its history says so
running                           a process holds the lock; the lock goes with the process, however it ends
killed                            neither: the process ended without a word
unknown                           neither, and it ran on another host, which cannot be asked
"""

import contextlib
import os
import secrets
import shutil
import stat
from dataclasses import asdict, dataclass
from typing import Any

from lockstep import linux
from lockstep.catalog import events
from lockstep.catalog.access import unreadable
from lockstep.catalog.run import Run
from lockstep.errors import UsageError
from lockstep.files import set_mode

ENDINGS = ("succeeded", "failed", "interrupted")


@dataclass(frozen=True)
class Status:
    """A run's state. ``started`` and ``finished`` are UTC times of the last attempt, as recorded."""

    word: str
    cause: str | None = None
    message: str | None = None
    rank: int | None = None
    attempt: int = 0
    started: str | None = None
    finished: str | None = None
    pid: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


def process_identity() -> dict[str, Any]:
    """What tells this process from any other, on any host, before and after a restart of the machine."""
    pid = os.getpid()
    return {
        "pid": pid,
        "boot_id": linux.boot_id(),
        "start_ticks": linux.start_ticks(pid),
        "host": os.uname().nodename,
    }


def of(run: Run) -> Status:
    """The run's status now. Reads whatever history there is; damaged events count as absent."""
    status, process = recorded(events.read(run))
    if status.word in ENDINGS:
        return status
    if not status.attempt and (why := unreadable(run)):
        return _with(status, "unknown", "not readable", why)
    if linux.is_locked(run.lock):
        return running(status)
    status, process = recorded(events.read(run))  # it may have ended between the two questions
    return status if status.word in ENDINGS else without_ending(status, process)


def running(status: Status) -> Status:
    """The status of a run that a process holds."""
    return _with(status, "running", None, None)


def hold(run: Run) -> int:
    """Become the one process that runs this run: make ``.live`` and lock it. The descriptor is kept for life.

    The lock ends with the last copy of the descriptor, so no process may inherit it (it closes on exec; a
    process that is forked without exec must close it). Raises UsageError where another process holds it.
    """
    for _ in range(100):
        descriptor = _open_lock(run)
        if descriptor is None:
            continue  # the process before us was just clearing up
        if not linux.try_lock(descriptor):
            pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            os.close(descriptor)
            who = f"pid {pid}" if pid.isdigit() else "pid unknown"
            raise UsageError(f"run {run.shown} is running already ({who})")
        if _still_in_place(run, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            _clear(run)
            return descriptor
        os.close(descriptor)
    raise UsageError(f"{run.lock} could not be taken: other processes make and remove it all the time")


def release(run: Run, descriptor: int) -> None:
    """Remove ``.live`` after an orderly end and give the lock back.

    The folder is moved aside first: a starter that comes meanwhile makes its own and never loses it to us.
    """
    aside = run.path / f".live.{secrets.token_hex(6)}"
    with contextlib.suppress(OSError):
        run.live.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    os.close(descriptor)


def _clear(run: Run) -> None:
    """Remove what an earlier process of this run left when it was killed; the caller holds the lock."""
    left = [path for path in run.live.iterdir() if path != run.lock]
    for path in [*left, *run.path.glob(".live.*")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _open_lock(run: Run) -> int | None:
    with contextlib.suppress(FileExistsError):
        run.live.mkdir(mode=0o700)
    try:
        folder = os.open(run.live, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{run.live} has to be a folder of this run, no link: {error.strerror}") from error
    try:
        set_mode(folder, 0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open("lock", flags, 0o600, dir_fd=folder)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)


def _still_in_place(run: Run, descriptor: int) -> bool:
    """Whether the file that was locked still is the one that others will open."""
    try:
        there = run.lock.lstat()
    except OSError:
        return False
    mine = os.fstat(descriptor)
    return stat.S_ISREG(there.st_mode) and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def recorded(history: list[dict[str, Any]]) -> tuple[Status, dict[str, Any]]:
    """The last attempt as the history tells it, and its process; no type is taken on trust.

    The status is ``unknown`` where the attempt has no end: the lock tells then, and ``without_ending``.
    """
    status = Status("unknown")
    process: dict[str, Any] = {}
    for event in history:
        time = _text(event.get("time"))
        if event["event"] == "started":
            given = event.get("process")
            process = given if isinstance(given, dict) else {}
            attempt = _number(event.get("attempt")) or status.attempt + 1
            status = Status("unknown", attempt=attempt, started=time, pid=_number(process.get("pid")))
        elif event["event"] == "finished" and event.get("status") in ENDINGS:
            status = Status(
                event["status"],
                _text(event.get("cause")),
                _text(event.get("message")),
                _number(event.get("rank")),
                status.attempt,
                status.started,
                time,
                status.pid,
            )
    return status, process


def without_ending(status: Status, process: dict[str, Any]) -> Status:
    """The status of a run that nobody holds and that did not say how it ended."""
    told = [_text(process.get("host")), _text(process.get("boot_id")), _number(process.get("start_ticks"))]
    if all(known is None for known in (*told, status.pid)):  # the same to who has read these alone (a list)
        return _with(status, "killed", "process gone", "the process ended before the run had started")
    host, here = _text(process.get("host")), os.uname().nodename
    if host != here:
        return _with(status, "unknown", "another host", f"it ran on {host}, and this is {here}: ask there")
    if process.get("boot_id") != linux.boot_id():
        return _with(status, "killed", "machine restarted", "the machine was restarted while it ran")
    ticks = linux.start_ticks(status.pid) if status.pid else None
    if ticks is not None and ticks == process.get("start_ticks"):
        message = f"process {status.pid} lives, but does not hold this folder: it is a copy of a running run"
        return _with(status, "unknown", "a copy", message)
    return _with(status, "killed", "process gone", f"process {status.pid} ended without a word")


def _with(status: Status, word: str, cause: str | None, message: str | None) -> Status:
    return Status(
        word, cause, message, attempt=status.attempt, started=status.started, finished=None, pid=status.pid
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
