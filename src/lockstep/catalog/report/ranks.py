"""Where each rank's time went, and what it used."""

from collections.abc import Sequence
from typing import Any

from lockstep.catalog.report.bars import parts_legend, time_bar, time_parts
from lockstep.catalog.report.lanes import lanes, straggler
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.steps import Steps
from lockstep.catalog.report.tables import section, table
from lockstep.catalog.report.values import (
    DASH,
    at,
    number,
    objects,
    show_bytes,
    show_count,
    show_percent,
    show_scalar,
    show_seconds,
    whole,
)

MOST_RANKS = 64
MOST_OPEN = 4  # runs whose lanes are unfolded on a page of several
TITLE = "Where the time went"
LAST = "ready last"
COLUMNS = (
    *("rank", "samples/s", "samples", "steps", "step, mean", "waiting", LAST),
    *("processor time", "peak memory", "sent", "start-up"),
)


def time(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The section of the page: of each run its ranks' bars, lanes and figures."""
    alone = len(records) == 1
    if not any(objects(record.results.get("ranks")) or record.steps.lanes for record in records):
        return section("time", TITLE, "No rank's time was recorded.")
    lead = _lead(records[0]) if alone else "Each run's ranks, by what their seconds were spent on."
    parts = [
        part
        for run, (record, name) in enumerate(zip(records, names, strict=True))
        for part in _of_run(record, run, "" if alone else name, len(records) <= MOST_OPEN)
    ]
    return section("time", TITLE, lead, parts_legend(), parts)


def _of_run(record: Record, run: int, name: str, opened: bool) -> list[Html | None]:
    """One run's share of the section; its name and lead only beside others."""
    found = objects(record.results.get("ranks"))
    ranks = found[:MOST_RANKS]
    lanes_by_rank = {lane.rank: lane for lane in record.steps.lanes}
    parts = [time_parts(rank, lanes_by_rank.get(whole(rank.get("rank")) or 0)) for rank in ranks]
    totals = [sum(part.values()) for part in parts]
    names = [f"rank {show_scalar(rank.get('rank', index))}" for index, rank in enumerate(ranks)]
    bars = [
        el("li", el("span", rank), time_bar(rank, part, max(totals)), el("span", show_seconds(total)))
        for rank, part, total in zip(names, parts, totals, strict=True)
    ]
    of = f" of {name}" if name else ""
    drawn = lanes(record.steps, run, "" if name else "Step by step")
    heading = [el("h3", name, class_="of-run"), el("p", _lead(record), class_="muted small")] if name else []
    shown: list[Html | None] = [
        *heading,
        el("ul", bars, class_="bars dense" if len(ranks) > 8 else "bars") if bars else None,
        (el("details", el("summary", f"Step by step{of}"), drawn, open=opened) if name else drawn)
        if drawn
        else None,
    ]
    figures = _table(ranks, names, record.steps, of) if ranks else None
    return [
        *shown,
        el("details", el("summary", f"Figures per rank{of}"), figures) if name and figures else figures,
    ]


def _lead(record: Record) -> str:
    found = objects(record.results.get("ranks"))
    ranks = found[:MOST_RANKS]
    names = [f"rank {show_scalar(rank.get('rank', index))}" for index, rank in enumerate(ranks)]
    lead = " ".join(word for word in (_waited(record, ranks, names), straggler(record.steps)) if word)
    if len(found) > MOST_RANKS:
        lead += f" The first {MOST_RANKS} of {len(found):,} ranks are shown."
    return lead


def _waited(record: Record, ranks: list[dict[str, Any]], names: list[str]) -> str:
    share = number(at(record.results, "training", "waiting_share"))
    told = [(number(rank.get("waiting_share")), name) for rank, name in zip(ranks, names, strict=True)]
    known = [(value, name) for value, name in told if value is not None]
    if len(ranks) <= 1 or share is None or not known:
        return "The seconds of all training steps, by what they were spent on."
    most, name = max(known)
    all_of_them = (
        f"Ranks waited for each other or exchanged gradients for {show_percent(share)} of their steps"
    )
    return f"{all_of_them}; {name} the longest, {show_percent(most)}."


def _table(ranks: list[dict[str, Any]], names: list[str], measured: Steps, of: str) -> Html:
    lanes_by_rank = {lane.rank: lane for lane in measured.lanes} if len(measured.lanes) > 1 else {}
    rows = []
    for name, rank in zip(names, ranks, strict=True):
        steps, seconds = whole(rank.get("steps")), number(rank.get("step_seconds"))
        lane = lanes_by_rank.get(whole(rank.get("rank")) or 0)
        last = [show_percent(lane.steps_last / max(1, measured.steps_read)) if lane else DASH]
        rows.append(
            [
                name,
                show_count(rank.get("samples_per_second")),
                show_count(rank.get("samples")),
                show_count(steps),
                show_seconds(seconds / steps) if steps and seconds is not None else DASH,
                show_percent(rank.get("waiting_share")),
                *(last if lanes_by_rank else []),
                show_seconds(rank.get("cpu_seconds")),
                show_bytes(rank.get("peak_rss_bytes")),
                show_bytes(rank.get("wire_bytes")),
                show_seconds(rank.get("startup_seconds")),
            ]
        )
    columns = [name for name in COLUMNS if lanes_by_rank or name != LAST]
    return table(f"Figures per rank{of}", columns, rows)
