"""Whether the clock of the machine was set while a run was recorded: then its times are no measure of lengths."""

from itertools import pairwise
from typing import Any

from lockstep.catalog.report.values import moment, number, show_seconds

SMALLEST_SECONDS = 2.0  # corrections below it are a clock's daily bread


def sentences(history: list[dict[str, Any]]) -> list[str]:
    """A phrase for each time that the clock was set, to stand after "unproven: "."""
    found = []
    for before, after in pairwise(history):
        apart = _set_by(before, after)
        if apart is None or abs(apart) < SMALLEST_SECONDS:
            continue
        how = "back" if apart < 0 else "forward"
        found.append(
            f"its times: the clock was set {how} by about {show_seconds(abs(apart))} between {before['event']} "
            f"({before.get('time')}) and {after['event']} ({after.get('time')})"
        )
    return found


def _set_by(before: dict[str, Any], after: dict[str, Any]) -> float | None:
    """By how many seconds the clock was set between two events; None where it cannot be told."""
    times = moment(before.get("time")), moment(after.get("time"))
    if None in times:
        return None
    passed = times[1] - times[0]  # type: ignore[operator]
    ticks = number(before.get("uptime_us")), number(after.get("uptime_us"))
    same_boot = after["event"] != "started" and None not in ticks and ticks[1] >= ticks[0]  # type: ignore[operator]
    if same_boot:
        return passed - (ticks[1] - ticks[0]) / 1e6  # type: ignore[operator]
    return passed if passed < 0 else None
