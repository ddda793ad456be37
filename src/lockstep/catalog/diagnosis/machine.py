"""What dead processes can leave on the machine outside a catalog: processes, shared memory, temporary folders.

Only what is ours by its name, our own user's, and in use by no process. Processes are named and never ended.
"""

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep import linux
from lockstep.catalog.diagnosis.ailment import Ailment, is_settled, removal
from lockstep.catalog.run import Run, is_name

SHARED_MEMORY = Path("/dev/shm")
DAY = 86400.0
_SERVER = "lockstep.launchers.server"
_SEGMENT = "/memfd:lockstep "
_TEMPORARY = re.compile(r"lockstep-(bench-|git-|sign-)?[a-z0-9_]{8}")


@dataclass(frozen=True)
class Process:
    """A process of this user: its command, and the paths that it holds open, maps or stands in."""

    pid: int
    command: tuple[str, ...]
    paths: frozenset[str]


def processes() -> list[Process]:
    """Every process of this user that can be looked into."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid != os.getuid() or linux.start_ticks(int(folder.name)) is None:
                continue
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            paths = {str((folder / "cwd").readlink())} | _mapped(folder / "maps") | _opened(folder / "fd")
        except OSError:
            continue  # it has ended
        found.append(Process(int(folder.name), tuple(command), frozenset(paths)))
    return found


def _mapped(maps: Path) -> set[str]:
    return {
        parts[5].strip()
        for line in maps.read_text(errors="replace", encoding="utf-8").splitlines()
        if len(parts := line.split(" ", 5)) > 5
    }


def _opened(folder: Path) -> set[str]:
    paths = set()
    for name in os.listdir(folder):  # noqa: PTH208 - names are all that is needed
        try:
            paths.add(str((folder / name).readlink()))
        except OSError:
            continue  # closed meanwhile
    return paths


def examine(catalog: Path, temporary: Path | None = None) -> Iterator[Ailment]:
    """Processes of runs of this catalog that no record tells of, and what dead ones left."""
    alive = processes()
    for process in alive:
        if problem := _stray(process, catalog):
            advice = f"If it is not wanted: kill {process.pid}"
            yield Ailment(f"process {process.pid}", problem, advice)
    in_use = {path.removesuffix(" (deleted)") for process in alive for path in process.paths}
    for path in _ours(SHARED_MEMORY, re.compile(r"lockstep[-_.].*")):
        if str(path) not in in_use and is_settled(path):
            yield removal(path, "is shared memory that no process uses")
    for path in _ours(temporary or Path(tempfile.gettempdir()), _TEMPORARY):
        used = any(each == str(path) or each.startswith(f"{path}/") for each in in_use)
        if not used and is_settled(path, DAY):
            yield removal(path, "is a temporary folder that a process left more than a day ago")


def _ours(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Plain files and folders of a name that is ours, and of this user."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            status = path.lstat()
        except OSError:
            continue
        plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if name.fullmatch(path.name) and plain and status.st_uid == os.getuid():
            found.append(path)
    return found


def _stray(process: Process, catalog: Path) -> str | None:
    """Why a process of ours belongs to no run that is running; None for all other processes."""
    is_server = _SERVER in process.command  # and what it forks, which has the same command line
    if not is_server and not any(path.startswith(_SEGMENT) for path in process.paths):
        return None
    if is_server and process.command[-1].isdecimal() and linux.start_ticks(int(process.command[-1])) is None:
        return f"serves process {process.command[-1]}, which is gone"
    for run_id in _runs_of(process, catalog):
        run = Run(catalog / run_id)
        if not run.events.is_file():
            return f"works for run {run_id}, whose folder is gone"
        if not linux.is_locked(run.lock):
            return f"works for run {run_id}, which no process holds"
    return None


def _runs_of(process: Process, catalog: Path) -> list[str]:
    """Which runs' folders it writes to."""
    prefix = f"{catalog}/"
    names = {path.removeprefix(prefix).split("/")[0] for path in process.paths if path.startswith(prefix)}
    return sorted(name for name in names if is_name(name))
