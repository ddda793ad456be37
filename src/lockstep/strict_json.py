"""JSON that every parser reads alike, which is what all records and all of our output are written in.

JSON has no NaN and no infinities. In place of such a number stands its name as text: "NaN", "Infinity" or
"-Infinity", as in the JSON form of protocol buffers; ``float`` of Python and ``Number`` of JavaScript read them.
"""

import json
import math
from typing import Any

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: object, **options: Any) -> str:
    """The value as strict JSON. ``options`` are those of ``json.dumps``.

    A byte of a path that is not UTF-8 (a lone surrogate in Python) becomes an escape, so that the text can be
    written as UTF-8 and gives the same path when it is read.
    """
    try:
        text = json.dumps(value, allow_nan=False, **options)
    except ValueError:  # also raised for a value that contains itself, which the second try finds again
        text = json.dumps(named(value), allow_nan=False, **options)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def named(value: object) -> Any:
    """The value with the name in place of each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return name_of(value)
    if isinstance(value, dict):
        return {key: named(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [named(inner) for inner in value]
    return value


def name_of(value: float) -> str:
    """The name of a number that is not finite."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def real(value: object) -> float | None:
    """A number as it was before it was written, also one that is not finite; None for anything else."""
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number that is larger than any float
        return None
