"""Draws a pipeline schedule: ranks are rows, time runs to the right, a box is a pass of one micro-batch.

The four kinds differ by their letter and their frame and not by colour alone.
"""

from lockstep.catalog.report.markup import Html, el
from lockstep.collectives.pipeline import Action, Schedule, classic_bubble

LEFT, TOP, CELL, ROW = 74, 58, 26, 34  # pixels
STYLE = """
svg { --ink: #1f2328; --paper: #ffffff; --idle: #eaeef2; --f: #b6d4fe; --b: #ffd8a8; --i: #ffe8c7; --w: #c3e6cb; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --paper: #0d1117; --idle: #21262d; --f: #1f4b8e; --b: #7a4a12; --i: #5c3d18; --w: #1d5a35; }
}
text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 14px; }
.box { text-anchor: middle; }
.paper { fill: var(--paper); }
.idle { fill: var(--idle); }
rect { stroke: var(--ink); stroke-width: 0; }
.F, .B, .I, .W { stroke-width: 1; }
.F { fill: var(--f); } .B { fill: var(--b); } .I { fill: var(--i); } .W { fill: var(--w); }
.I, .W { stroke-dasharray: 3 2; }
.later { stroke-width: 2; }
"""


def as_text(schedule: Schedule) -> str:
    """A line for each rank: F2 is forward of micro-batch 2, a dot is an idle unit, a letter tells the rank's stages."""
    many = len(schedule.placement) > schedule.ranks
    width = 2 + many + len(str(schedule.micro_batches - 1))
    lines = []
    for rank, row in enumerate(schedule.rows):
        cells = ["."] * schedule.units
        own = sorted({action.stage for action in row})
        for action in row:
            turn = chr(ord("a") + own.index(action.stage)) if many else ""
            for unit in range(action.start, action.stop):
                cells[unit] = f"{action.kind}{action.micro_batch}{turn}"
        lines.append(f"rank {rank} " + "".join(cell.ljust(width) for cell in cells).rstrip())
    return "\n".join(lines) + "\n"


def as_svg(schedule: Schedule) -> str:
    """An image that explains itself."""
    width, height = LEFT + CELL * schedule.units + 16, TOP + ROW * schedule.ranks + 30
    idle, classic = schedule.idle_share, classic_bubble(schedule.ranks, schedule.micro_batches)
    parts: list[Html] = [
        el("style", Html(STYLE)),
        el("rect", class_="paper", width=width, height=height),
        el(
            "text",
            f"{schedule.name}: {schedule.micro_batches} micro-batches through {len(schedule.placement)} stages on "
            f"{schedule.ranks} ranks",
            class_="title",
            x=12,
            y=22,
        ),
        el("text", f"idle {idle:.1%} of the time ((p-1)/(m+p-1) is {classic:.1%})", x=12, y=42),
    ]
    for rank, row in enumerate(schedule.rows):
        top = TOP + ROW * rank
        parts.append(el("text", f"rank {rank}", x=12, y=top + 19))
        parts.append(el("rect", class_="idle", x=LEFT, y=top, width=CELL * schedule.units, height=ROW - 6))
        first = min(action.stage for action in row)
        parts += [_box(action, top, action.stage != first) for action in row]
    note = "F forward, B backward; I and W are its halves: the gradient of the input, that of the weights"
    if len(schedule.placement) > schedule.ranks:
        note += "; thick frames are later stages of the same rank"
    parts.append(el("text", note, x=12, y=height - 10))
    drawn = el(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
    )
    return str(drawn) + "\n"


def _box(action: Action, top: int, later: bool) -> Html:
    left, wide = LEFT + CELL * action.start, CELL * (action.stop - action.start)
    return el(
        "g",
        el(
            "rect",
            class_=f"{action.kind} later" if later else action.kind,
            x=left + 1,
            y=top,
            width=wide - 2,
            height=ROW - 6,
        ),
        el("text", f"{action.kind}{action.micro_batch}", class_="box", x=left + wide // 2, y=top + 18),
    )
