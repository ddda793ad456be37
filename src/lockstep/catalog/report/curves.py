"""Curves per epoch as SVG. Places are percentages, so that text keeps its size at any width of the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.scales import Scale, epoch_scale, round_scale
from lockstep.catalog.report.values import percent_of

MOST_MARKERS = 12  # they tell the lines apart; more of them would only hide the lines
MOST_HOVERS = 150  # places that answer to the pointer; a longer run is sampled evenly
MOST_POINTS = 3000
TIP_LINE = 17  # pixels between two lines of a hover's text
CHARACTER = 7.2  # pixels, about


@dataclass(frozen=True)
class Series:
    """One line: its name, the class that draws it, and a value (or None) for each epoch."""

    name: str
    kind: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """All that a figure needs. ``marked`` is an epoch that is pointed out, with what it is."""

    title: str
    epochs: Sequence[int]
    series: Sequence[Series]
    show: Callable[[object], str]
    show_tick: Callable[[float], str]
    top: float | None = None
    marked: tuple[int, str] | None = None


def curves(chart: Chart) -> Html:
    """The figure: title, legend with last values, axes, lines, and a hover for each epoch."""
    drawn = [value for series in chart.series for value in series.values if value is not None]
    if not drawn or not chart.epochs:
        return el(
            "figure",
            el("figcaption", el("h3", chart.title)),
            el("p", "Nothing was recorded.", class_="muted"),
        )
    across = epoch_scale(chart.epochs[0], chart.epochs[-1])
    up = round_scale(drawn, floor=0.0, top=chart.top)
    plot = el(
        "svg",
        el("desc", _in_words(chart)),
        _axes(across, up, chart.show_tick),
        _marked(chart, across),
        [_line(series, chart.epochs, across, up) for series in chart.series],
        _hovers(chart, across, up),
        class_="plot",
        role="img",
        aria_label=f"{chart.title} per epoch",
    )
    return el("figure", el("figcaption", el("h3", chart.title), _legend(chart)), plot)


def sampled(count: int, most: int) -> list[int]:
    """Indices spread evenly over a count, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _in_words(chart: Chart) -> str:
    first, last = chart.epochs[0], chart.epochs[-1]
    ends = []
    for series in chart.series:
        known = [value for value in series.values if value is not None]
        if known:
            ends.append(f"{series.name} from {chart.show(known[0])} to {chart.show(known[-1])}")
    return f"Epochs {first} to {last}: {'; '.join(ends)}."


def _legend(chart: Chart) -> Html:
    entries = []
    for series in chart.series:
        known = [value for value in series.values if value is not None]
        sample = el(
            "svg",
            el("line", x1="1", y1="6", x2="27", y2="6", class_=f"line {series.kind}"),
            _marker(series.kind, "14", "6"),
            class_="sample",
            aria_hidden="true",
        )
        entries.append(el("li", sample, series.name, " ", el("b", chart.show(known[-1] if known else None))))
    return el("ul", entries, class_="legend")


def _axes(across: Scale, up: Scale, show_tick: Callable[[float], str]) -> list[Html]:
    marks = []
    for tick in up.ticks:
        y = percent_of(1 - up.place(tick))
        marks.append(el("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        marks.append(el("text", show_tick(tick), x="-8", y=y, dy="0.32em", text_anchor="end"))
    for tick in across.ticks:
        x = percent_of(across.place(tick))
        marks.append(el("line", x1=x, x2=x, y1="100%", y2="100%", class_="grid"))
        marks.append(el("text", f"{tick:g}", x=x, y="100%", dy="1.5em", text_anchor="middle"))
    marks.append(el("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    marks.append(el("text", "epoch", x="50%", y="100%", dy="2.8em", text_anchor="middle", class_="muted"))
    return marks


def _marked(chart: Chart, across: Scale) -> Html | None:
    if chart.marked is None or not chart.epochs[0] <= chart.marked[0] <= chart.epochs[-1]:
        return None
    place = across.place(chart.marked[0])
    x = percent_of(place)
    side = "end" if place > 0.5 else "start"
    label = el("text", chart.marked[1], x=x, dx="-5" if side == "end" else "5", y="-6", text_anchor=side)
    return el("g", el("line", x1=x, x2=x, y1="-14", y2="100%"), label, class_="marked")


def _line(series: Series, epochs: Sequence[int], across: Scale, up: Scale) -> list[Html]:
    """The line, broken where a value is absent; its own coordinates, stretched over the whole plot."""
    segments: list[list[str]] = [[]]
    places: list[tuple[float, float]] = []
    for index in sampled(len(series.values), MOST_POINTS):
        value = series.values[index]
        if value is None:
            segments.append([])
            continue
        x, y = across.place(epochs[index]), 1 - up.place(value)
        segments[-1].append(f"{x * 1000:.2f},{y * 1000:.2f}")
        places.append((x, y))
    lines = [
        el("polyline", points=" ".join(points), class_=f"line {series.kind}") for points in segments if points
    ]
    stretched = el(
        "svg", lines, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"
    )
    marked = [places[index] for index in sampled(len(places), MOST_MARKERS)]
    return [stretched, *(_marker(series.kind, percent_of(x), percent_of(y)) for x, y in marked)]


def _marker(kind: str, x: str, y: str) -> Html:
    """A disc for the training split, a hollow square for validation: told apart without colour."""
    if kind == "train":
        return el("circle", cx=x, cy=y, r="3.6", class_=f"marker {kind}")
    square = el("rect", x="-3", y="-3", width="6", height="6", class_=f"marker {kind}")
    return el("svg", square, x=x, y=y)


def _hovers(chart: Chart, across: Scale, up: Scale) -> list[Html]:
    indices = sampled(len(chart.epochs), MOST_HOVERS)
    places = [across.place(chart.epochs[index]) for index in indices]
    hovers = []
    for position, index in enumerate(indices):
        place = places[position]
        left = (places[position - 1] + place) / 2 if position else 0.0
        right = (places[position + 1] + place) / 2 if position + 1 < len(places) else 1.0
        x = percent_of(place)
        points = [
            _marker(series.kind, x, percent_of(1 - up.place(value)))
            for series in chart.series
            if (value := series.values[index]) is not None
        ]
        area = el(
            "rect", x=percent_of(left), width=percent_of(right - left), y="0", height="100%", class_="area"
        )
        guide = el("line", x1=x, x2=x, y1="0", y2="100%", class_="guide")
        hovers.append(
            el("g", area, el("g", guide, points, _tip(chart, index, place), class_="tip"), class_="hover")
        )
    return hovers


def _tip(chart: Chart, index: int, place: float) -> Html:
    lines = [f"epoch {chart.epochs[index]}"]
    lines += [f"{series.name} {chart.show(series.values[index])}" for series in chart.series]
    width = round(max(len(line) for line in lines) * CHARACTER + 16)
    left = -width - 10 if place > 0.5 else 10
    texts = [
        el("text", line, x=left + 8, y=18 + TIP_LINE * row, class_="head" if row == 0 else None)
        for row, line in enumerate(lines)
    ]
    box = el("rect", x=left, y="0", width=width, height=TIP_LINE * len(lines) + 10, rx="4", class_="box")
    return el("svg", box, texts, x=percent_of(place), y="4%")
