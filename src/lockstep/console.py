"""Writing for people, whatever the encoding of their terminal: what it lacks is replaced, and never an error."""

import codecs
import io
from typing import TextIO

from lockstep.files import readable

REPLACING = "lockstep.replacing"  # the error handler below, as Python's codecs know it
_PLAIN = str.maketrans(
    {"✓": "+", "✗": "x", "■": "-", "–": "-", "…": "...", "·": "-", "µ": "u", "×": "x", "²": "2"}
    | {"─": "-", "│": "|", "├": "+", "└": "+", "█": "#", "▏": "|", "▒": "-", "━": "-", "→": "->"}
)  # fmt: skip


def replace(error: UnicodeError) -> tuple[str, int]:
    """An error handler: signs of ours become similar ones of ASCII; other characters, and user text, are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = readable(error.object[error.start : error.end]).translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(REPLACING, replace)


def forgive(*streams: TextIO | None) -> None:
    """Let streams replace what their encoding lacks, unless the user asked for something else.

    Python refuses it ("strict"), or in the C locale writes all but bytes of file names as errors ("surrogateescape").
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=REPLACING)
