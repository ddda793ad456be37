"""How much memory can still be had: of the machine, and of every control group that this process stands in."""

from collections.abc import Iterator
from pathlib import Path

# For each version of control groups: the folder below /sys/fs/cgroup, the files of the limit and of what is taken,
# and the lines of memory.stat with pages of files, which the kernel gives up when the memory is needed.
_V2 = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def available_bytes(system: Path = Path("/")) -> int | None:
    """What the machine has free, or what is left of a control group, whichever is less; None where neither tells."""
    return min([*_of_the_machine(system), *_of_the_groups(system)], default=None)


def _of_the_machine(system: Path) -> Iterator[int]:
    for line in _text(system / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_the_groups(system: Path) -> Iterator[int]:
    """Of the process' own group and of all that it stands in: a limit on any of them holds."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        below, limit, used, cached = _V1 if controllers else _V2
        root = system / "sys/fs/cgroup" / below
        # A container may be told its path on the host, of which it sees the last folder alone: as the root.
        own = root if ".." in Path(group).parts else root / group.lstrip("/")
        for folder in (own, *own.parents):
            yield from _left(folder, limit, used, cached)
            if folder == root:
                break


def _left(folder: Path, limit: str, used: str, cached: tuple[str, ...]) -> Iterator[int]:
    most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdecimal() and taken.isdecimal()):  # the root has none, and "max" is no limit
        return
    counts = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    given_up = sum(int(counts.get(name, 0)) for name in cached)
    yield max(int(most) - max(int(taken) - given_up, 0), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
