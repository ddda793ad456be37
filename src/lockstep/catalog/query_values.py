"""Values of a query as people type them: shares, lengths of time, dates, and parameters of any kind."""

import math
import re
from collections.abc import Callable
from typing import Any

from lockstep.catalog.report.values import moment
from lockstep.errors import UsageError
from lockstep.files import parse_json

_SECONDS = {
    "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0,
}  # fmt: skip
_LENGTH = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([a-z]+)")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]{4,15}(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?")


def quantity(text: str, kind: str, where: str) -> float:
    """A number in the unit of its column (shares of one, seconds). Raises UsageError, beginning ``where``."""
    if kind == "time":
        found = _date(text)
        allowed = "a date: 2026-11-20, or 2026-11-20T12:30"
    elif kind == "seconds":
        length = _length(text)
        found = _figure(text) if length is None else length
        allowed = "seconds, or a number with ms, s, min, h, d or w: 10min"
    elif kind == "share":
        percent = _figure(text[:-1]) if text.endswith("%") else None
        found = _figure(text) if percent is None else percent / 100
        allowed = "a number or a percentage: 0.95 or 95%"
    else:
        found, allowed = _figure(text), "a number: 0.95"
    if found is None:
        raise UsageError(f"{where}: found {text!r}, allowed: {allowed}")
    return found


def instant(text: str, now: float, where: str) -> float:
    """A moment as a date (UTC), or as a length of time before now. Raises UsageError."""
    length = _length(text)
    found = now - length if length is not None else _date(text)
    if found is None:
        allowed = "a length of time such as 12h, 7d or 2w, or a date (UTC) such as 2026-11-20"
        raise UsageError(f"{where}: found {text!r}, allowed: {allowed}")
    return found


def parameter_is(name: str, sign: str, text: str) -> Callable[[Any], bool]:
    """A test of a recorded parameter, which may be a number, text, true or false, null, or a list."""
    wanted = _value(text)
    if sign in ("~", "!~"):
        part = text.casefold()
        return lambda value: (value is not None and part in _words(value).casefold()) == (sign == "~")
    if sign in ("=", "!="):
        return lambda value: _same(value, wanted, text) == (sign == "=")
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        raise UsageError(f"--where {name}{sign}{text}: found {text!r}, allowed: a number: 0.001")
    limit = wanted
    compare: Callable[[Any], bool] = {
        "<": lambda value: value < limit,
        "<=": lambda value: value <= limit,
        ">": lambda value: value > limit,
        ">=": lambda value: value >= limit,
    }[sign]
    return lambda value: type(value) in (int, float) and compare(value)


def _same(value: Any, wanted: Any, text: str) -> bool:
    if isinstance(value, str):
        return value in (text, wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _value(text: str) -> Any:
    """What is typed, as JSON where it is that (1e-3, true, null, [64, 64]); else as text; nothing is null."""
    if text == "":
        return None
    try:
        value = parse_json(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _figure(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _length(text: str) -> float | None:
    found = _LENGTH.fullmatch(text.strip())
    return float(found[1]) * _SECONDS[found[2]] if found and found[2] in _SECONDS else None


def _date(text: str) -> float | None:
    return moment(text) if _DATE.fullmatch(text) else None
