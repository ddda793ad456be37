"""Running a whole command: how long it took, and how busy others kept the machine meanwhile."""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Finished:
    """A command that has ended, and every process that it left as well."""

    output: str
    began: float  # time.time(), which the stamps in a record are compared with
    seconds: float
    load: float  # the load average as it started
    busy_cores: float  # cores that processes other than the command's used meanwhile
    core_seconds: float  # processor time of the command's own processes

    @property
    def ended(self) -> float:
        return self.began + self.seconds


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind: only then is their time counted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(arguments: list[str]) -> Finished:
    """Run a Python command from the project's root to its end; a failure ends the benchmark and is shown."""
    load, busy, own = os.getloadavg()[0], _busy_seconds(), _own_seconds()
    began, clock = time.time(), time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    seconds = time.monotonic() - clock
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # a fork server that is still leaving must not slow the next command
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}")
    spent = _own_seconds() - own
    elapsed = time.monotonic() - clock
    others = max((_busy_seconds() - busy - spent) / elapsed, 0.0)
    return Finished(done.stdout, began, seconds, load, others, spent)


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _busy_seconds() -> float:
    """Processor time that all processes of the machine have used since it started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
