"""Bars as SVG: where each rank's time went, and when each step of the pipeline ran."""

from lockstep.catalog.report.history import Attempt
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.steps import Lane
from lockstep.catalog.report.values import number, percent_of, show_percent, show_seconds

PARTS = tuple((part, part) for part in ("data", "compute", "sync", "waiting", "other"))
SIGNS = {"succeeded": "✓", "failed": "✕", "interrupted": "‖", "skipped": "»", "open": "…"}
LABEL_FROM = 0.07  # of the bar's full length: a shorter part has no room for its percentage


def time_parts(rank: dict[str, object], lane: Lane | None) -> dict[str, float]:
    """Seconds by part. What is none of the others is other; never less than nothing.

    The results hold sync and waiting as one; a rank's steps tell the two apart, where they were measured.
    """
    together = max(0.0, number(rank.get("sync_seconds")) or 0.0)
    sync, waiting = (sum(lane.parts[part]) for part in ("sync", "waiting")) if lane else (0.0, 0.0)
    waited = waiting / (sync + waiting) if sync + waiting else 1.0
    parts = {
        "data": max(0.0, number(rank.get("data_seconds")) or 0.0),
        "compute": max(0.0, number(rank.get("compute_seconds")) or 0.0),
        "sync": together * (1 - waited),
        "waiting": together * waited,
    }
    total = number(rank.get("step_seconds")) or 0.0
    return {**parts, "other": max(0.0, total - sum(parts.values()))}


def parts_legend() -> Html:
    """What the colours and the hatching of the time bars and lanes mean."""
    return el("ul", [el("li", _sample(kind), words) for kind, words in PARTS], class_="legend")


def time_bar(name: str, parts: dict[str, float], longest: float) -> Html:
    """One rank's bar: the parts in a fixed order, each with its share where there is room."""
    total = sum(parts.values())
    pieces, at = [], 0.0
    for kind, words in PARTS:
        length = parts[kind] / longest if longest else 0.0
        if length > 0:
            share = show_percent(parts[kind] / total)
            about = el("title", f"{name}, {words}: {show_seconds(parts[kind])}, {share}")
            place = {"x": percent_of(at), "width": percent_of(length), "y": "0", "height": "100%"}
            pieces.append(el("rect", about, **place, class_=f"part {kind}"))
            if kind == "waiting":
                pieces.append(el("rect", **place, class_="hatch"))
            if length >= LABEL_FROM:
                middle = percent_of(at + length / 2)
                pieces.append(
                    el(
                        "text",
                        share,
                        x=middle,
                        y="50%",
                        dy="0.34em",
                        text_anchor="middle",
                        class_=f"on {kind}" + (" tight" if length < 0.25 else ""),
                    )
                )
        at += length
    told = (
        ", ".join(f"{words} {show_percent(parts[kind] / total)}" for kind, words in PARTS)
        if total
        else "no time"
    )
    return el("svg", pieces, class_="bar", role="img", aria_label=f"{name}: {told}")


def timeline(attempt: Attempt) -> Html:
    """One attempt's steps, each a bar from when it began to when it ended, on one axis of time."""
    begins = [step.started for step in attempt.steps if step.started is not None]
    first = min([*begins, *([attempt.started] if attempt.started is not None else [])], default=0.0)
    ends = [step.started + (step.seconds or 0.0) for step in attempt.steps if step.started is not None]
    span = max([*ends, attempt.last or first]) - first or 1.0
    rows = []
    for step in attempt.steps:
        begin = 0.0 if step.started is None else max(0.0, (step.started - first) / span)
        length = min(1.0 - min(1.0, begin), (step.seconds or 0.0) / span)
        known = step.status in SIGNS
        sign = el("span", SIGNS.get(step.status, "?"), aria_hidden="true")
        bar = el(
            "svg",
            el("line", x1="0", x2="100%", y1="50%", y2="50%", class_="grid"),
            el(
                "rect",
                x=percent_of(begin),
                width=percent_of(max(0.004, length)),
                y="0",
                height="100%",
                rx="2",
                class_=f"step {step.status if known else 'open'}",
            ),
            class_="bar thin",
            aria_hidden="true",
        )
        rows.append(
            el(
                "tr",
                el("th", step.name, scope="row"),
                el("td", bar, class_="wide"),
                el("td", show_seconds(step.seconds), class_="n"),
                el("td", sign, " ", el("span", step.status, class_="word")),
            )
        )
    head = [el("th", words, scope="col", class_=kind) for words, kind in _STEP_COLUMNS]
    return el("table", el("thead", el("tr", head)), el("tbody", rows), class_="timeline")


_STEP_COLUMNS = (("step", None), ("when", None), ("took", "n"), ("status", None))


def _sample(kind: str) -> Html:
    hatch = el("rect", width="12", height="12", class_="hatch") if kind == "waiting" else None
    square = el("rect", width="12", height="12", class_=f"part {kind}")
    return el("svg", square, hatch, class_="swatch", aria_hidden="true")
