"""One thing that is wrong with a record: which file, and what about it."""

from dataclasses import dataclass
from typing import Any

from lockstep.files import printable


@dataclass(frozen=True, order=True)
class Finding:
    """``file`` is a path in the run's folder, ``problem`` the rest of the sentence that begins with it."""

    file: str
    problem: str

    def __str__(self) -> str:
        """The sentence, safe to show: file names of a record are anybody's text."""
        return f"{printable(self.file)} {printable(self.problem)}".replace("\n", "\\n")

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {"file": self.file, "problem": self.problem}


def of_history(sentence: str) -> Finding:
    """A sentence of the history's own check, which begins with the file's name."""
    return Finding("events.jsonl", sentence.removeprefix("events.jsonl").lstrip(": "))
