"""Curves as SVG that needs no script. Places are percentages, so that text keeps its size at any width.

With script, the page's own charts (charts.js) take this place, from the same figures.
"""

from collections.abc import Sequence

from lockstep.catalog.report.charts import Chart, Line
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.scales import Scale, epoch_scale, round_scale
from lockstep.catalog.report.values import percent_of

MOST_MARKERS = 12  # they tell the lines apart; more of them would only hide the lines
MOST_POINTS = 320  # about one for each pixel and a half
COLOURS = 8  # of runs; then they begin again


def figure(chart: Chart, names: Sequence[str]) -> Html:
    """The figure: title, legend with last values, axes and lines. ``names`` are the runs'."""
    legend = _legend(chart) if len(names) == 1 else None
    caption = el("figcaption", el("h3", chart.title), legend)
    across, up = _scales(chart)
    if across is None:
        return el("figure", caption, el("p", "Nothing was recorded.", class_="muted"))
    plot = el(
        "svg",
        el("desc", _in_words(chart, names)),
        _axes(across, up, chart),
        _marked(chart, across),
        [_line(line, across, up, len(names) == 1, chart.form == "count") for line in chart.lines],
        class_="plot",
        role="img",
        aria_label=f"{chart.title} by step",
    )
    return el("figure", caption, el("div", plot, class_="stage"), class_="chart", data_chart=chart.key)


def sampled(count: int, most: int) -> list[int]:
    """Indices spread evenly over a count, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def kind_of(line: Line, alone: bool) -> str:
    """The classes that draw a line: its colour is the split's on a page of one run, else the run's."""
    colour = "train" if line.split == "steps" else line.split
    return f"{line.split} k-{colour if alone else f'run{line.run % COLOURS}'}"


def swatch(kind: str) -> Html:
    """A piece of the line, as a legend shows it."""
    return el(
        "svg",
        el("line", x1="1", y1="6", x2="27", y2="6", class_=f"line {kind}"),
        _marker(kind, "14", "6") if "steps" not in kind.split() else None,
        class_="sample",
        aria_hidden="true",
    )


def _scales(chart: Chart) -> tuple[Scale | None, Scale]:
    values = [value for line in chart.lines for value in line.values if value is not None]
    steps = [step for line in chart.lines for step in line.steps]
    up = round_scale(values, floor=0.0, top=chart.top)
    return (epoch_scale(min(steps), max(steps)) if values and steps else None), up


def _in_words(chart: Chart, names: Sequence[str]) -> str:
    ends = []
    for line in chart.lines:
        known = [value for value in line.values if value is not None]
        if known and (line.split != "steps" or len(chart.lines) <= len(names)):
            whose = [names[line.run]] if len(names) > 1 else []
            whose += [] if line.split == "steps" else [line.split]
            ends.append(f"{' '.join([*whose, 'from'])} {chart.show(known[0])} to {chart.show(known[-1])}")
    return f"{chart.title}: {'; '.join(ends)}."


def _legend(chart: Chart) -> Html | None:
    splits = [line for line in chart.lines if line.split != "steps"]
    entries = [
        el("li", swatch(kind_of(line, True)), line.split, " ", el("b", chart.show(line.last)))
        for line in splits
    ]
    return el("ul", entries, class_="legend") if entries else None


def _axes(across: Scale, up: Scale, chart: Chart) -> list[Html]:
    marks = []
    for tick in up.ticks:
        y = percent_of(1 - up.place(tick))
        marks.append(el("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        marks.append(el("text", chart.show_tick(tick), x="-8", y=y, dy="0.32em", text_anchor="end"))
    for tick in across.ticks:
        x = percent_of(across.place(tick))
        marks.append(el("text", f"{tick:,.0f}", x=x, y="100%", dy="1.5em", text_anchor="middle"))
    marks.append(el("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    marks.append(el("text", "step", x="50%", y="100%", dy="2.8em", text_anchor="middle", class_="muted"))
    return marks


def _marked(chart: Chart, across: Scale) -> Html | None:
    if chart.marked is None or not across.low <= chart.marked[0] <= across.high:
        return None
    place = across.place(chart.marked[0])
    x = percent_of(place)
    side = "end" if place > 0.5 else "start"
    label = el("text", chart.marked[1], x=x, dx="-5" if side == "end" else "5", y="-6", text_anchor=side)
    return el("g", el("line", x1=x, x2=x, y1="-14", y2="100%"), label, class_="marked")


def _line(line: Line, across: Scale, up: Scale, alone: bool, is_speed: bool) -> list[Html]:
    """The line, broken where a value is absent; its own coordinates, stretched over the whole plot."""
    kind = kind_of(line, alone)
    segments: list[list[str]] = [[]]
    places: list[tuple[float, float]] = []
    for step, value in _folded(line, is_speed) if line.split == "steps" else _sampled(line):
        if value is None:
            segments.append([])
            continue
        x, y = across.place(step), 1 - up.place(value)
        segments[-1].append(f"{x * 1000:.1f},{y * 1000:.1f}")
        places.append((x, y))
    lines = [
        el("polyline", points=" ".join(points), class_=f"line {kind}", data_under=line.under or None)
        for points in segments
        if points
    ]
    stretched = el(
        "svg", lines, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"
    )
    marked = [] if line.split == "steps" else [places[at] for at in sampled(len(places), MOST_MARKERS)]
    return [stretched, *(_marker(kind, percent_of(x), percent_of(y)) for x, y in marked)]


def _sampled(line: Line) -> list[tuple[float, float | None]]:
    return [(line.steps[index], line.values[index]) for index in sampled(len(line.values), MOST_POINTS)]


def _folded(line: Line, is_speed: bool) -> list[tuple[float, float | None]]:
    """Means over neighbouring steps, few enough to draw calmly; of speeds the harmonic one."""
    width = max(1, -(-len(line.values) // (MOST_POINTS // 2)))
    folded: list[tuple[float, float | None]] = []
    for start in range(0, len(line.values), width):
        known = [value for value in line.values[start : start + width] if value is not None]
        steps = line.steps[start : start + width]
        mean = sum(known) / len(known) if known else None
        if is_speed and known and min(known) > 0:
            mean = len(known) / sum(1 / value for value in known)
        folded.append((sum(steps) / len(steps), mean))
    return folded


def _marker(kind: str, x: str, y: str) -> Html:
    """A disc for the training split, a hollow square for validation: told apart without colour."""
    if "validation" not in kind.split():
        return el("circle", cx=x, cy=y, r="3.4", class_=f"marker {kind}")
    square = el("rect", x="-3", y="-3", width="6", height="6", class_=f"marker {kind}")
    return el("svg", square, x=x, y=y)
