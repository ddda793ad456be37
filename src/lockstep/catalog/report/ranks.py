"""Where each rank's time went, and what it used."""

from typing import Any

from lockstep.catalog.report.bars import parts_legend, time_bar, time_parts
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
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
TITLE = "Where the time went"
COLUMNS = (
    *("rank", "samples/s", "samples", "steps", "step, mean", "waiting"),
    *("processor time", "peak memory", "sent", "start-up"),
)


def time(record: Record) -> Html:
    """The section of the page."""
    found = objects(record.results.get("ranks"))
    if not found:
        return section("time", TITLE, "No rank's time was recorded.")
    ranks = found[:MOST_RANKS]
    parts = [time_parts(rank) for rank in ranks]
    totals = [sum(part.values()) for part in parts]
    names = [f"rank {show_scalar(rank.get('rank', index))}" for index, rank in enumerate(ranks)]
    bars = [
        el("li", el("span", name), time_bar(name, part, max(totals)), el("span", show_seconds(total)))
        for name, part, total in zip(names, parts, totals, strict=True)
    ]
    lead = _waited(record, ranks, names)
    if len(found) > MOST_RANKS:
        lead += f" The first {MOST_RANKS} of {len(found):,} ranks are shown."
    dense = "bars dense" if len(ranks) > 8 else "bars"
    return section("time", TITLE, lead, parts_legend(), el("ul", bars, class_=dense), _table(ranks, names))


def _waited(record: Record, ranks: list[dict[str, Any]], names: list[str]) -> str:
    share = number(at(record.results, "training", "waiting_share"))
    told = [(number(rank.get("waiting_share")), name) for rank, name in zip(ranks, names, strict=True)]
    known = [(value, name) for value, name in told if value is not None]
    if len(ranks) == 1 or share is None or not known:
        return "The seconds of all training steps, by what they were spent on."
    most, name = max(known)
    all_of_them = f"Ranks waited for each other for {show_percent(share)} of their steps"
    return f"{all_of_them}; {name} the longest, {show_percent(most)}."


def _table(ranks: list[dict[str, Any]], names: list[str]) -> Html:
    rows = []
    for name, rank in zip(names, ranks, strict=True):
        steps, seconds = whole(rank.get("steps")), number(rank.get("step_seconds"))
        rows.append(
            [
                name,
                show_count(rank.get("samples_per_second")),
                show_count(rank.get("samples")),
                show_count(steps),
                show_seconds(seconds / steps) if steps and seconds is not None else DASH,
                show_percent(rank.get("waiting_share")),
                show_seconds(rank.get("cpu_seconds")),
                show_bytes(rank.get("peak_rss_bytes")),
                show_bytes(rank.get("wire_bytes")),
                show_seconds(rank.get("startup_seconds")),
            ]
        )
    return table("Figures per rank", COLUMNS, rows)
