"""Per-rank lanes: where each step's time went as training went on, and which rank the others waited for."""

import math
from collections.abc import Sequence

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.scales import epoch_scale
from lockstep.catalog.report.steps import PARTS, Lane, Steps
from lockstep.catalog.report.values import percent_of, show_percent, show_seconds

MOST_POINTS = 160  # of one lane without script
STANDS_OUT_SIGMAS = (
    3.0  # standard deviations above the count of steps that chance would make a rank the last in
)
STANDS_OUT_TIME = 0.03  # of the training time


def lanes(steps: Steps, run: int, title: str) -> Html | None:
    """The figure of one run's ranks, on one axis of steps and one of time a step."""
    if not steps.lanes or len(steps) < 2:
        return None
    top, cut = ceiling(steps)
    across = epoch_scale(steps.first[0], steps.last[-1])
    rows = [
        el(
            "li",
            el("span", f"rank {lane.rank}", class_="name"),
            el(
                "svg",
                _areas(lane, top),
                role="img",
                aria_label=f"rank {lane.rank}: {told(lane, steps)}",
                viewBox="0 0 1000 100",
                preserveAspectRatio="none",
                class_="lane",
            ),
            data_rank=lane.rank,
        )
        for lane in steps.lanes
    ]
    ticks = [
        el("text", f"{tick:,.0f}", x=percent_of(across.place(tick)), y="14", text_anchor="middle")
        for tick in across.ticks
    ]
    axis = el(
        "li",
        el("span", "step", class_="name muted"),
        el("svg", ticks, class_="lane-axis", aria_hidden="true"),
    )
    about = f"Each lane is {show_seconds(top)} a step high"
    about += "; what is taller is cut off." if cut else "."
    return el(
        "figure",
        el("figcaption", el("h3", title) if title else None, el("p", about, class_="muted small")),
        el("div", el("ul", rows, axis, class_="lanes"), class_="stage"),
        class_="chart",
        data_lanes=run,
    )


def ceiling(steps: Steps) -> tuple[float, bool]:
    """The height of a lane in seconds a step, and whether a few slow steps stand out above it."""
    totals = sorted(
        sum(lane.parts[part][index] for part in PARTS) for lane in steps.lanes for index in range(len(steps))
    )
    most, usual = totals[-1], totals[int(0.95 * (len(totals) - 1))]
    return (1.3 * usual, True) if most > 1.6 * usual > 0 else (most or 1.0, False)


def told(lane: Lane, steps: Steps) -> str:
    """A lane in words."""
    sums = {part: sum(lane.parts[part]) for part in PARTS}
    total = sum(sums.values()) or 1.0
    shares = ", ".join(f"{part} {show_percent(value / total)}" for part, value in sums.items() if value)
    return (
        f"{shares}; last to be ready in {show_percent(lane.steps_last / max(1, steps.steps_read))} of steps"
    )


def straggler(steps: Steps) -> str:
    """One sentence: who kept the others waiting, where one rank stands out; else that none does."""
    if len(steps.lanes) < 2 or not steps.steps_read or not steps.seconds:
        return ""
    worst = max(steps.lanes, key=lambda lane: lane.kept_waiting_seconds)
    share = worst.steps_last / steps.steps_read
    chance, read = 1 / len(steps.lanes), steps.steps_read
    lost = worst.kept_waiting_seconds / steps.share_read
    spread = math.sqrt(read * chance * (1 - chance))
    late = worst.steps_last > read * chance + STANDS_OUT_SIGMAS * spread
    if late and lost > STANDS_OUT_TIME * steps.seconds[-1]:
        return (
            f"Rank {worst.rank} is the straggler: the last to be ready in {show_percent(share)} of the steps, "
            f"it cost {show_seconds(lost)} of waiting."
        )
    return "No rank stands out as a straggler: the last to be ready changes from step to step."


def _areas(lane: Lane, top: float) -> list[Html]:
    """The parts on top of each other, data at the bottom."""
    count = len(lane.last)
    width = max(1, -(-count // MOST_POINTS))
    groups = [range(start, min(count, start + width)) for start in range(0, count, width)]
    base = [0.0] * len(groups)
    drawn = []
    for part in PARTS:
        heights = [_mean(lane.parts[part], group) for group in groups]
        above = [low + high for low, high in zip(base, heights, strict=True)]
        if any(heights):
            points = [*_edge(above, top), *reversed(_edge(base, top))]
            drawn.append(el("polygon", points=" ".join(points), class_=f"part {part}"))
        base = above
    return drawn


def _mean(values: Sequence[float], group: range) -> float:
    return sum(values[index] for index in group) / len(group)


def _edge(heights: Sequence[float], top: float) -> list[str]:
    """Steps of a staircase would be too many points: straight lines between the middles of groups."""
    count = len(heights)
    points = [
        f"{(index + 0.5) / count * 1000:.1f},{max(0.0, 100 - height / top * 100):.1f}"
        for index, height in enumerate(heights)
    ]
    first, last = points[0].partition(",")[2], points[-1].partition(",")[2]
    return [f"0,{first}", *points, f"1000,{last}"]
