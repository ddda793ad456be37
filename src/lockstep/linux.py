"""What the kernel knows of processes: who is alive, who holds a lock, who dies with whom. Linux only."""

import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import sys
import tempfile
from pathlib import Path

from lockstep.errors import UsageError

PR_SET_PDEATHSIG = 1
_FLOCK = "hhqqi4x"  # struct flock with 64-bit offsets: type, whence, start, length, pid


def require_linux(what: str) -> None:
    """Refuse in one line where the guarantees below cannot be given."""
    if sys.platform != "linux":
        raise UsageError(
            f"{what} needs Linux, and this is {sys.platform}: without its parent-death signal and its "
            "open-file locks a crash could leave ranks running. Reading runs (lockstep list, show) works here."
        )


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to SIGKILL this process when its parent ends, however the parent ends.

    The parent may have died before the request was made, so its pid is checked again afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def boot_id() -> str:
    """Differs after every boot, so that a pid of an earlier boot is never mistaken for a live one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """The process's start time in clock ticks since boot, which tells a re-used pid apart; None if none.

    One that has ended and was not waited for yet (a zombie) is none.
    """
    fields = _fields_of(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def process_state(pid: int) -> str:
    """The kernel's letter for what a process does: R runs, S sleeps, T is stopped, Z has ended; X where it is gone."""
    fields = _fields_of(pid)
    return fields[0] if fields else "X"


def _fields_of(pid: int) -> list[str]:
    """What /proc/PID/stat says after the command, which stands in brackets and may itself hold any bytes."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def try_lock(descriptor: int) -> bool:
    """Take an exclusive open-file-description lock: held until the descriptor closes, so until death."""
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        refuse_without_locks(error, Path(f"/proc/self/fd/{descriptor}").readlink())
        raise
    return True


def refuse_without_locks(error: OSError, path: Path) -> None:
    """Raise UsageError where an error means that the file system has no locks.

    Nothing takes their place: a lock ends with its process, on whatever host that is, and a note in a file does not.
    """
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
        raise UsageError(
            f"{path} cannot be locked ({error.strerror}), and a lock is what tells whether a run is going on: the file "
            "system has none. Keep the runs on another one (--catalog FOLDER), or mount it with locks"
        ) from error


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock. Asks without taking it, so that asking never gets in a starter's way."""
    try:
        # A pipe that somebody put there must not keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # The question is put as a read lock: a write lock would need a descriptor that can write.
        query = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)
    except (OSError, AttributeError):
        return False
    finally:
        os.close(descriptor)


def anonymous_file(name: str) -> int:
    """A descriptor of memory that no folder names, and that goes with its last user."""
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:  # an old kernel or C library, or a sandbox that forbids it
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(prefix=f"{name}-", dir=place) as file:
        return os.dup(file.fileno())


class Peer:
    """A process, to be asked whether it has ended. A number that is given out again is no longer the process."""

    def __init__(self, pid: int, ticks: int) -> None:
        self._pid, self._ticks = pid, ticks
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except (
            AttributeError,
            OSError,
        ):  # it has ended, or neither kernel nor sandbox knows such descriptors
            self._descriptor = None
        if start_ticks(pid) != ticks:
            self.close()

    def ended(self) -> bool:
        """Whether it has ended (a zombie has)."""
        if self._descriptor is None:
            return start_ticks(self._pid) != self._ticks
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """The NVIDIA GPUs that this process may use, without a library and without waking one."""
    present = sum(1 for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    chosen = [word.strip() for word in visible.split(",") if word.strip()]
    if "-1" in chosen:  # which hides all that follow
        chosen = chosen[: chosen.index("-1")]
    return min(present, len(chosen))
