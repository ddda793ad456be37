"""Axes: round numbers between two ends, and places along them as shares of one."""

import math
from dataclasses import dataclass

HEADROOM = 0.04  # of an axis, above a value that would touch its end


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high``, and where its marks stand."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a value stands, from 0 at the low end to 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


def round_scale(
    values: list[float], about: int = 5, floor: float | None = None, top: float | None = None
) -> Scale:
    """An axis around the values whose ends and marks are round numbers; never beyond floor and top."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if floor is not None and low - floor < 0.25 * (high - floor):
        low = floor  # an axis that could start at its natural floor should: lengths stay comparable
    if high - low <= 1e-9 * max(1.0, abs(high)):
        margin = max(abs(high) * 0.25, 1e-9)
        low, high = low - margin if floor is None else min(floor, low), high + margin
        high = high if top is None else min(top, high)
    step = _round_step((high - low) / max(1, about))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ends = first * step, last * step
    # A line at the very top would lie on the frame, and its markers be cut in half.
    headroom = HEADROOM * (ends[1] - ends[0]) if high > ends[1] - HEADROOM * (ends[1] - ends[0]) else 0.0
    return Scale(ends[0], ends[1] + headroom, tuple(index * step for index in range(first, last + 1)))


def epoch_scale(first: int, last: int, about: int = 6) -> Scale:
    """An axis of whole epochs: the first and the last are always marked."""
    if first >= last:
        return Scale(first - 1.0, first + 1.0, (float(first),))
    step = max(1, round(_round_step((last - first) / about)))
    inner = [tick for tick in range(step * (first // step + 1), last, step) if last - tick >= 0.6 * step]
    marks = [first, *(tick for tick in inner if tick - first >= 0.6 * step), last]
    return Scale(float(first), float(last), tuple(float(mark) for mark in marks))


def _round_step(rough: float) -> float:
    """The nearest of 1, 2, 2.5, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough * 0.999), 10 * power)
