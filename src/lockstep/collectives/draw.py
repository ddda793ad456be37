"""Draws schedules: who sends which chunks to whom, round by round, as SVG and as rows of text.

Ranks are columns, time runs downwards. What is added to the receiver's chunk ends in a circled plus on a solid
line; what replaces it ends in an arrowhead on a dashed one, so that colour says nothing that the shape does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lockstep.catalog.report.markup import Html, el
from lockstep.collectives.schedule import Schedule

LEFT, TOP, LANE, ROW, GAP = 92, 98, 112, 26, 16  # pixels
MOST_LANES = 32

STYLE = """
svg { --ink: #1f2328; --faint: #8c959f; --paper: #ffffff; --add: #0550ae; --copy: #953800; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --faint: #6e7681; --paper: #0d1117; --add: #79c0ff; --copy: #ffa657; }
}
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 15px; }
.chunks { paint-order: stroke; stroke: var(--paper); stroke-width: 5px; stroke-linejoin: round; text-anchor: middle; }
.rank { text-anchor: middle; font-weight: 600; }
.paper { fill: var(--paper); }
.lane, .rule { stroke: var(--faint); stroke-width: 1; }
.rule { stroke-dasharray: 1 4; }
.add { stroke: var(--add); stroke-width: 1.8; fill: none; }
.copy { stroke: var(--copy); stroke-width: 1.8; fill: none; }
line.copy { stroke-dasharray: 6 4; }
circle.add { fill: var(--paper); }
path.copy { fill: var(--copy); }
.from { fill: var(--ink); }
"""


@dataclass(frozen=True)
class Message:
    """One message of a round. ``added`` says whether the receiver adds it, or takes it as it is."""

    source: int
    to: int
    chunks: range
    added: bool

    @property
    def label(self) -> str:
        """The chunks as text: 3, or 0-3."""
        first, last = self.chunks[0], self.chunks[-1]
        return str(first) if first == last else f"{first}–{last}"


def messages(schedules: Sequence[Schedule]) -> list[list[Message]]:
    """The messages of each round, in the order of their senders."""
    drawn = []
    for number in range(len(schedules[0].rounds)):
        found = [
            Message(each.peer, schedule.rank, each.chunks, each.kind == "receive_reduce")
            for schedule in schedules
            for each in schedule.rounds[number]
            if each.kind != "send"
        ]
        drawn.append(sorted(found, key=lambda message: (message.source, message.chunks.start, message.to)))
    return drawn


def title(schedule: Schedule) -> str:
    """One line that says what is drawn."""
    rounds, chunks = len(schedule.rounds), schedule.chunks
    ranks = _count(schedule.world_size - schedule.servers, "worker" if schedule.servers else "rank")
    servers = f", {_count(schedule.servers, 'server')}" if schedule.servers else ""
    return (
        f"{schedule.collective} by {schedule.algorithm}: {ranks}{servers}, "
        f"the buffer in {_count(chunks, 'chunk')}, {_count(rounds, 'round')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def svg(schedules: Sequence[Schedule]) -> str:
    """The drawing as an SVG document that follows the reader's light or dark scheme."""
    size = len(schedules)
    width = max(LEFT + LANE * size, 600)
    bands: list[object] = []
    y = TOP
    for number, found in enumerate(messages(schedules), start=1):
        rows = _packed(found)
        bands.append(el("line", x1=16, x2=width - 16, y1=y, y2=y, class_="rule"))
        bands.append(el("text", f"round {number}", x=16, y=y + GAP + ROW / 2 + 2))
        for index, row in enumerate(rows):
            bands += [_arrow(message, y + GAP + ROW * index + ROW / 2) for message in row]
        y += GAP + ROW * max(len(rows), 1) + 6
    lanes = [_column(rank, name_of(schedules[0], rank), y) for rank in range(size)]
    height = y + 20
    return "<?xml version='1.0' encoding='UTF-8'?>\n" + el(
        "svg",
        el("title", title(schedules[0])),
        el("style", Html(STYLE)),
        el("rect", width=width, height=height, class_="paper"),
        el("text", title(schedules[0]), x=16, y=26, class_="title"),
        _legend(),
        lanes,
        bands,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
    )


def name_of(schedule: Schedule, rank: int) -> str:
    """rank 3, or what a rank is where there are servers."""
    workers = schedule.world_size - schedule.servers
    if not schedule.servers:
        return f"rank {rank}"
    return f"worker {rank}" if rank < workers else f"server {rank - workers}"


def _column(rank: int, name: str, bottom: float) -> list[Html]:
    x = _lane(rank)
    return [
        el("text", name, x=x, y=TOP - 14, class_="rank"),
        el("line", x1=x, x2=x, y1=TOP - 6, y2=bottom, class_="lane"),
    ]


def _lane(rank: int) -> float:
    return LEFT + LANE * (rank + 0.5)


def _packed(found: Sequence[Message]) -> list[list[Message]]:
    """Messages in rows in which none crosses another: short ones first, each in the first row with room."""
    rows: list[list[Message]] = []
    for message in sorted(found, key=lambda each: (abs(each.source - each.to), min(each.source, each.to))):
        low, high = sorted((message.source, message.to))
        for row in rows:
            if all(high <= min(each.source, each.to) or low >= max(each.source, each.to) for each in row):
                row.append(message)
                break
        else:
            rows.append([message])
    return rows


def _arrow(message: Message, y: float) -> list[Html]:
    forward = 1 if message.to > message.source else -1
    start, stop = _lane(message.source) + 6 * forward, _lane(message.to) - 9 * forward
    kind = "add" if message.added else "copy"
    # A long message is labelled near its sender: at its middle it may cross another rank's lane.
    middle = start + forward * min(abs(stop - start), LANE - 15) / 2
    return [
        el("line", x1=start, x2=stop - (0 if message.added else 4 * forward), y1=y, y2=y, class_=kind),
        el("circle", cx=start, cy=y, r=2.5, class_="from"),
        *_head(stop, y, forward, message.added),
        el("text", message.label, x=middle, y=y - 4, class_="chunks"),
    ]


def _head(x: float, y: float, forward: int, added: bool) -> list[Html]:
    if not added:
        return [el("path", d=f"M{x + 5 * forward},{y} l{-10 * forward},-5 v10 z", class_="copy")]
    return [
        el("circle", cx=x, cy=y, r=6, class_="add"),
        el("path", d=f"M{x - 3.5},{y} h7 M{x},{y - 3.5} v7", class_="add"),
    ]


def _legend() -> list[Html]:
    """What the two kinds of arrow mean, below the title."""
    y = 48
    return [
        el("line", x1=18, x2=50, y1=y, y2=y, class_="add"),
        *_head(56, y, 1, added=True),
        el("text", "the receiver adds it", x=70, y=y + 4),
        el("line", x1=226, x2=258, y1=y, y2=y, class_="copy"),
        *_head(264, y, 1, added=False),
        el("text", "the receiver takes it as it is", x=276, y=y + 4),
        el("text", "numbers: chunks", x=478, y=y + 4),
    ]
