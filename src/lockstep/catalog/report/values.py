"""Values of unknown shape from JSON, narrowed; and figures as people read them; a dash for none."""

import math
from datetime import UTC, datetime
from typing import Any

from lockstep.strict_json import name_of, real

DASH = "–"
LATEST = 253_402_300_000  # in the year 9999, the last that a calendar here can show
LARGEST = 1e15  # nothing that a run measures is larger; what is cannot be drawn


def number(value: object) -> float | None:
    """A finite number, or None for anything else: NaN, infinity, text, true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -LARGEST < value < LARGEST else None


def figure(value: object) -> float | str | None:
    """A number as records hold it: a finite one, or the name of one that is not (NaN); None for anything else."""
    found = real(value)
    return number(value) if found is None or math.isfinite(found) else name_of(found)


def whole(value: object) -> int | None:
    """A whole number from 0, or None."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def mapping(value: object) -> dict[str, Any]:
    """The object itself, or an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[dict[str, Any]]:
    """The objects of a list; anything else is passed over."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def at(value: object, *keys: str) -> Any:
    """A nested member, or None where the path ends early."""
    for key in keys:
        value = mapping(value).get(key)
    return value


def moment(value: object) -> float | None:
    """Seconds since 1970 from an ISO 8601 time, or None."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
        if found is None:
            return None
        seconds = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < LATEST else None


def show_moment(value: float | None) -> str:
    """A moment as a person writes it, in UTC."""
    return DASH if value is None else f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC"


def show_percent(value: object) -> str:
    """A share of one: 0.9722 is 97.2%."""
    found = figure(value)
    if not isinstance(found, float):
        return found or DASH
    return f"{found * 100:.1f}%"


def show_decimal(value: object) -> str:
    """Four significant digits: losses, learning rates."""
    found = figure(value)
    if not isinstance(found, float):
        return found or DASH
    if found and not 1e-4 <= abs(found) < 1e5:
        return f"{found:.2e}"
    return f"{found:#.4g}" if found else "0"


def show_count(value: object) -> str:
    """A whole number with its thousands apart."""
    found = number(value)
    return DASH if found is None else f"{found:,.0f}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 epoch, 2,000 epochs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def show_seconds(value: object) -> str:
    """A duration in the unit that suits it."""
    found = number(value)
    if found is None:
        return DASH
    if 0 < found < 0.1:
        return f"{found * 1e6:.0f} µs" if found < 1e-3 else f"{found * 1e3:.1f} ms"
    if found < 59.95:
        return f"{found:.2f} s" if found < 10 else f"{found:.1f} s"
    minutes, seconds = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def show_bytes(value: object) -> str:
    """A size in three digits and a decimal unit, as ``bucket_mb`` counts: 1 MB is 1,000,000 bytes."""
    found = number(value)
    if found is None:
        return DASH
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if abs(found) >= 0.9995 * factor:
            return (
                f"{found / factor:,.3g} {unit}"
                if abs(found) < 999.5 * factor
                else f"{found / factor:,.0f} {unit}"
            )
    return f"{found:,.0f} bytes"


def percent_of(value: float) -> str:
    """A length or a place along an SVG axis, from a share of one."""
    return f"{value * 100:.3f}".rstrip("0").rstrip(".") + "%"


def is_scalar(value: object) -> bool:
    """True for what JSON writes as one word."""
    return value is None or isinstance(value, str | int | float)


def show_scalar(value: object) -> str:
    """Any JSON scalar as text: yes and no for truth, a dash for null, nothing, and what is no scalar."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_scalar(value) or value is None or value == "":
        return DASH
    return name_of(value) if isinstance(value, float) and not math.isfinite(value) else str(value)
