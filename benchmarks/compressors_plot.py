"""The loss curves of `compressors.py` as one SVG: a panel for each optimizer, light and dark, told apart by shape."""

import math
from collections.abc import Sequence
from typing import Any

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.scales import epoch_scale

LEFT, TOP, WIDE, HIGH, GAP, LEGEND = 62, 64, 400, 330, 62, 128  # pixels
MARKERS = 7  # on each curve

# Okabe and Ito's colours, which are told apart with any kind of colour vision; lighter ones on dark paper.
STYLE = """
svg { --ink: #1f2328; --quiet: #59636e; --paper: #ffffff; --grid: #e4e7ea; --c0: #9aa2ab; --c1: #0072b2;
      --c2: #000000; --c3: #009e73; --c4: #b8860b; --c5: #b0417f; --c6: #d55e00; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --quiet: #9aa4af; --paper: #0d1117; --grid: #262c34; --c0: #79828c; --c1: #56b4e9;
        --c2: #ffffff; --c3: #2fd0a2; --c4: #f0e442; --c5: #f093c4; --c6: #ff8b3d; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 15px; }
.quiet { fill: var(--quiet); }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.paper { fill: var(--paper); }
.grid { stroke: var(--grid); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.marker { stroke-width: 1.8; fill: var(--paper); }
""" + "".join(f".k{number} {{ stroke: var(--c{number}); }}\n" for number in range(7))
WIDTHS = (10, 3, 3, 3, 2.4, 2.4, 2.4)  # the uncompressed curve lies below the others as a band
DASHES = ("", "9 18", "9 18", "9 18", "", "", "7 5")
OFFSETS = (0, 0, -9, -18, 0, 0, 0)  # three curves that coincide take turns
NOTE = "fp16, bf16 and int8 coincide with the uncompressed curve"
SHAPES = ("", "", "", "", "circle", "square", "triangle")


def draw(found: dict[str, dict[str, Any]]) -> str:
    """An SVG document of (optimizer, compressor) -> figures."""
    panels = list(found.items())
    names = list(panels[0][1])
    width = LEFT + len(panels) * (WIDE + GAP) - GAP + 36
    height = TOP + HIGH + 52 + LEGEND
    values = [loss for _, runs in panels for run in runs.values() for loss in run["losses"]]
    low, high = math.floor(math.log10(min(values)) * 4) / 4, math.ceil(math.log10(max(values)) * 4) / 4
    title = "Training loss on digits, by compressor"
    return "<?xml version='1.0' encoding='UTF-8'?>\n" + el(
        "svg",
        el("title", title),
        el("desc", _in_words(found)),
        el("style", Html(STYLE)),
        el("rect", width=width, height=height, class_="paper"),
        el("text", title, x=LEFT, y=24, class_="title"),
        el("text", NOTE, x=width - 36, y=24, class_="end quiet"),
        [
            _panel(place, heading, runs, (low, high))
            for number, (heading, runs) in enumerate(panels)
            for place in [LEFT + number * (WIDE + GAP)]
        ],
        _legend(names, panels[0][1], TOP + HIGH + 60),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
    )


def _in_words(found: dict[str, dict[str, Any]]) -> str:
    return " ".join(
        f"{heading}: "
        + ", ".join(f"{name} ends at {run['losses'][-1]:.3f}" for name, run in runs.items())
        + "."
        for heading, runs in found.items()
    )


def _panel(left: float, heading: str, runs: dict[str, Any], ends: tuple[float, float]) -> list[Html]:
    low, high = ends
    epochs = len(next(iter(runs.values()))["losses"])
    across = epoch_scale(1, epochs)

    def x(epoch: float) -> float:
        return round(left + WIDE * across.place(epoch), 1)

    def y(loss: float) -> float:
        return round(TOP + HIGH * (high - math.log10(loss)) / (high - low), 1)

    marks: list[Html] = [el("text", heading, x=left, y=TOP - 14, class_="quiet")]
    for loss in _ticks(low, high):
        marks.append(el("line", x1=left, x2=left + WIDE, y1=y(loss), y2=y(loss), class_="grid"))
        marks.append(el("text", f"{loss:g}", x=left - 8, y=y(loss), dy="0.32em", class_="end quiet"))
    for tick in across.ticks:
        marks.append(el("text", f"{tick:g}", x=x(tick), y=TOP + HIGH, dy="1.5em", class_="middle quiet"))
    marks.append(el("text", "epoch", x=left + WIDE / 2, y=TOP + HIGH, dy="2.7em", class_="middle quiet"))
    for kind, run in enumerate(runs.values()):
        points = [(x(epoch), y(loss)) for epoch, loss in enumerate(run["losses"], start=1)]
        marks += _curve(kind, points)
    return marks


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times each power of ten between the ends of the axis."""
    found = [
        digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 2, 5)
    ]
    return [round(tick, 9) for tick in found if low <= math.log10(tick) <= high]


def _curve(kind: int, points: Sequence[tuple[float, float]], in_turn: bool = True) -> list[Html]:
    dash = (
        f";stroke-dasharray:{DASHES[kind]};stroke-dashoffset:{OFFSETS[kind] * in_turn}"
        if DASHES[kind]
        else ""
    )
    line = el(
        "polyline",
        points=" ".join(f"{x},{y}" for x, y in points),
        class_=f"line k{kind}",
        style=f"stroke-width:{WIDTHS[kind]}{dash}",
    )
    if not SHAPES[kind]:
        return [line]
    step = max(1, len(points) // MARKERS)
    return [line, *(_marker(kind, x, y) for x, y in points[kind % step :: step])]


def _marker(kind: int, x: float, y: float) -> Html:
    shape, class_ = SHAPES[kind], f"marker k{kind}"
    if shape == "circle":
        return el("circle", cx=x, cy=y, r=4, class_=class_)
    if shape == "square":
        return el("rect", x=x - 3.5, y=y - 3.5, width=7, height=7, class_=class_)
    return el("path", d=f"M{x} {y - 4.8}l4.6 8h-9.2z", class_=class_)


def _legend(names: Sequence[str], runs: dict[str, Any], top: float) -> list[Html]:
    """A sample of each line, its name, and by how much fewer bytes it sends."""
    plain = runs[names[0]]["bytes_per_step"]
    entries: list[Html] = []
    for kind, name in enumerate(names):
        left, y = LEFT + (kind // 4) * (WIDE + GAP), top + 14 + (kind % 4) * 25
        entries += _curve(kind, [(left, y), (left + 44, y)], in_turn=False)[:1]
        if SHAPES[kind]:
            entries.append(_marker(kind, left + 22, y))
        sent = runs[name]["bytes_per_step"]
        ratio = f"{plain / sent:.1f} times fewer bytes" if kind and sent else f"{sent:,.0f} bytes a step"
        entries.append(el("text", f"{name}: {ratio}", x=left + 56, y=y, dy="0.32em"))
    return entries
