"""``.lockstepignore`` at the top of a repository: files whose contents no run's record may keep.

A pattern a line, as the shell has them. One without a ``/`` fits a name, of a file or of any folder above it; one with
a ``/`` fits the path from the top. With ``!`` before it, files that fit are kept although they look like credentials.
Lines that begin with ``#`` are remarks. The last pattern that fits decides.
"""

import fnmatch
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lockstep.files import read_plain

NAME = ".lockstepignore"
LARGEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Patterns:
    """The patterns of one repository, in the order of the file."""

    lines: tuple[str, ...] = ()

    def decision(self, path: str) -> bool | None:
        """True: leave the file out. False: keep it, whatever it looks like. None: no pattern fits."""
        found: bool | None = None
        for line in self.lines:
            pattern = line.removeprefix("!")
            if _fits(path, pattern):
                found = not line.startswith("!")
        return found


def read(top: Path) -> Patterns:
    """The patterns of the repository at ``top``; none where it has no such file."""
    try:
        content = read_plain(top / NAME, LARGEST_BYTES).decode(errors="replace")
    except OSError:
        return Patterns()
    lines = (line.strip() for line in content.splitlines())
    return Patterns(tuple(line for line in lines if line and not line.startswith("#")))


def _fits(path: str, pattern: str) -> bool:
    parts = PurePosixPath(path).parts
    whole = pattern.strip("/")
    if "/" not in pattern.rstrip("/"):
        names = parts[:-1] if pattern.endswith("/") else parts
        return any(fnmatch.fnmatchcase(part, whole) for part in names)
    above = ("/".join(parts[:count]) for count in range(1, len(parts) + (not pattern.endswith("/"))))
    return any(fnmatch.fnmatchcase(each, whole) for each in above)
