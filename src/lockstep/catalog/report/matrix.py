"""The confusion matrix as SVG: rows are the true classes, columns the predicted ones."""

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.values import show_count, show_percent, whole

MOST_CLASSES = 200
COUNTS_UP_TO = 25  # classes; beyond, a cell has no room for its count and only tells it on hover
LEVELS = 6


def counts_of(confusion: object) -> list[list[int]]:
    """A square of counts, or an empty list where it is not one."""
    if not isinstance(confusion, list) or not 1 <= len(confusion) <= MOST_CLASSES:
        return []
    rows = [[whole(cell) or 0 for cell in row] for row in confusion if isinstance(row, list)]
    return rows if len(rows) == len(confusion) and all(len(row) == len(rows) for row in rows) else []


def mistakes(counts: list[list[int]], most: int = 5) -> list[tuple[int, int, int]]:
    """The most frequent wrong answers: true class, predicted class, how often."""
    found = [
        (true, predicted, count)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    return sorted(found, key=lambda mistake: (-mistake[2], mistake[0], mistake[1]))[:most]


def heat_map(counts: list[list[int]], names: list[str]) -> Html:
    """The whole matrix. Right answers stand on the diagonal, framed; wrong ones in the other hue."""
    size = len(counts)
    cell = 42 if size <= 10 else 36 if size <= 12 else 26 if size <= COUNTS_UP_TO else max(5, 640 // size)
    short = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
    longest = max(len(name) for name in short)
    margin = 30 + round(longest * 6.6)
    slanted = longest > 3
    head = 30 + (round(longest * 5.2) if slanted else 12)
    worst = _worst_share(counts)
    cells = [
        _cell(counts[true], (true, predicted), cell, names, worst)
        for true in range(size)
        for predicted in range(size)
        if counts[true][predicted] or size <= COUNTS_UP_TO
    ]
    frame = el("rect", width=size * cell, height=size * cell, class_="frame")
    inside = el("g", frame, cells, _labels(short, cell, slanted), transform=f"translate({margin} {head})")
    across = el("text", "predicted", x=margin + size * cell / 2, y="12", text_anchor="middle", class_="muted")
    middle = head + size * cell / 2
    down = el(
        "text",
        "true",
        x="12",
        y=middle,
        text_anchor="middle",
        class_="muted",
        transform=f"rotate(-90 12 {middle})",
    )
    width, height = margin + size * cell + 12, head + size * cell + 4
    return el(
        "svg",
        el(
            "desc",
            "Rows are true classes, columns predicted classes. The table of classes sums them up.",
        ),
        across,
        down,
        inside,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"Confusion matrix of {size} classes",
        class_="matrix wide" if 12 < size <= COUNTS_UP_TO else "matrix",
    )


def _worst_share(counts: list[list[int]]) -> float:
    """Of all mistakes the largest share of its true class; 1 where there is none."""
    shares = [
        count / sum(row)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    return max(shares, default=1.0)


def _cell(row: list[int], where: tuple[int, int], cell: int, names: list[str], worst: float) -> Html:
    true, predicted = where
    count, right = row[predicted], true == predicted
    share = count / sum(row) if sum(row) else 0.0
    # Mistakes are rare where a model is any good: beside the most frequent one they can still be told apart.
    least = 1 if len(row) <= COUNTS_UP_TO else 3  # a small cell must stand out by its colour alone
    level = 0 if not count else max(least, round((share if right else (share / worst) ** 0.5) * LEVELS))
    place = {"x": predicted * cell, "y": true * cell}
    title = None
    if count:
        verb = "recognised" if right else f"taken for {names[predicted]}"
        title = el(
            "title",
            f"{names[true]} {verb}: {show_count(count)} of {show_count(sum(row))}, {show_percent(share)}",
        )
    square = el(
        "rect",
        title,
        **place,
        width=cell,
        height=cell,
        class_=f"cell {'right' if right else 'wrong'} l{level}",
    )
    if not count or len(row) > COUNTS_UP_TO:
        return square
    text = el(
        "text",
        show_count(count),
        x=predicted * cell + cell / 2,
        y=true * cell + cell / 2,
        dy="0.34em",
        text_anchor="middle",
        class_=f"count {'right' if right else 'wrong'} l{level}" + (" long" if count > 999 else ""),
    )
    return el("g", square, text)


def _labels(short: list[str], cell: int, slanted: bool) -> list[Html]:
    room = 14 if slanted else 8 * max(map(len, short)) + 6
    every = max(1, -(-room // cell))
    labels = []
    for index in range(0, len(short), every):
        middle = index * cell + cell / 2
        labels.append(el("text", short[index], x="-7", y=middle, dy="0.34em", text_anchor="end"))
        if slanted:
            turned = f"rotate(-45 {middle} -8)"
            labels.append(el("text", short[index], x=middle, y="-8", transform=turned))
        else:
            labels.append(el("text", short[index], x=middle, y="-8", text_anchor="middle"))
    return labels
