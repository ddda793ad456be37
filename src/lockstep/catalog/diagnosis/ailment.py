"""Something that a death or a fault left behind, and how to mend it where that is safe."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.catalog.leftovers import remove
from lockstep.files import printable

SETTLED_SECONDS = 600.0  # what is younger may be at work at this moment


@dataclass(frozen=True)
class Ailment:
    """``advice`` says what a person can do; ``mend`` does what is safe and says what it did."""

    place: str
    problem: str
    advice: str = ""
    mend: Callable[[], str] | None = None

    def __str__(self) -> str:
        """One line, safe to show."""
        text = f"{self.place}: {self.problem}" + (f". {self.advice}" if self.advice else "")
        return printable(text).replace("\n", "\\n")

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "place": self.place,
            "problem": self.problem,
            "advice": self.advice,
            "can_be_mended": self.mend is not None,
        }


def removal(path: Path, problem: str, advice: str = "") -> Ailment:
    """An ailment that goes with the file."""

    def mend() -> str:
        remove(path)
        return f"removed {path}"

    return Ailment(str(path), problem, advice, mend)


def is_settled(path: Path, seconds: float = SETTLED_SECONDS) -> bool:
    """Whether nobody has written there for a while; False for what is gone."""
    try:
        return time.time() - path.lstat().st_mtime > seconds
    except OSError:
        return False
