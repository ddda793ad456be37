"""The top of the page: which run, how it stands, and the figures that everybody asks for first."""

from pathlib import Path
from typing import Any

from lockstep.catalog import culprit
from lockstep.catalog.report.history import History
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import facts
from lockstep.catalog.report.values import (
    at,
    counted,
    moment,
    number,
    objects,
    show_bytes,
    show_count,
    show_decimal,
    show_moment,
    show_percent,
    show_scalar,
    show_seconds,
    whole,
)

SIGNS = {
    "succeeded": "✓",
    "evaluated": "✓",
    "failed": "✕",
    "killed": "✕",
    "interrupted": "‖",
    "open": "○",
    "unknown": "?",
}
SECTIONS = (
    ("learning", "Learning"),
    ("time", "Time"),
    ("test", "Test"),
    ("pipeline", "Pipeline"),
    ("parameters", "Parameters"),
    ("files", "Files"),
    ("provenance", "Provenance"),
)


def header(record: Record, history: History) -> Html:
    """The banner of the page."""
    created = created_of(record)
    tag = record.results.get("tag") or created.get("tag")
    words, kind = standing(record, history)
    message = (record.state.message if record.state else None) or history.message
    badge = el("span", SIGNS.get(kind, "?"), " ", words, class_=f"badge {kind}")
    return el(
        "header",
        el("p", "Lockstep run report", class_="product"),
        el("h1", record.run.run_id),
        el("p", badge, el("span", show_scalar(tag), class_="tag") if tag else None, class_="badges"),
        el("p", _sentence(record, created), class_="lead"),
        _parent(created),
        _still_open(record, history),
        el("pre", message, class_="message", tabindex="0") if message else None,
        _log(record, history),
        _figures(record, history),
        el(
            "nav",
            [el("a", name, href=f"#{anchor}") for anchor, name in SECTIONS],
            aria_label="Parts of this page",
        ),
    )


def created_of(record: Record) -> dict[str, Any]:
    """The event that began the run's history, or an empty one."""
    return next((event for event in record.events if event.get("event") == "created"), {})


def known(record: Record, name: str) -> object:
    """What the results, or the history's first event, say of one of the run's facts."""
    found = record.results.get(name)
    found = at(created_of(record), "summary", name) if found is None else found
    return at(found, "name") if isinstance(found, dict) else found


def standing(record: Record, history: History) -> tuple[str, str]:
    """How the run stands, in words, and the class that colours it."""
    if record.state is None:
        return history.words, history.outcome
    word = record.state.word
    rank = "" if record.state.rank is None else f", rank {record.state.rank}"
    words = word + (f": {show_scalar(record.state.cause)}" if record.state.cause else "") + rank
    return words, {"running": "open"}.get(word, word)


def notes(record: Record, history: History) -> Html | None:
    """What the reader must know before believing the page: what is missing, and what the run warned of."""
    planned = record.plan.get("warnings")
    warned = [*history.warnings, *(planned if isinstance(planned, list) else [])]
    lines = [el("li", el("b", "Missing: "), gap) for gap in record.gaps]
    lines += [
        el("li", el("b", "Warning: "), show_scalar(line)) for line in dict.fromkeys(map(show_scalar, warned))
    ]
    return el("aside", el("ul", lines), class_="notes", aria_label="Notes") if lines else None


def _sentence(record: Record, created: dict[str, Any]) -> list[object]:
    """What was trained on what, how, and when."""
    ranks = whole(known(record, "world_size") or record.plan.get("world_size"))
    strategy = known(record, "strategy") or at(record.plan, "strategy", "name")
    told = [("", known(record, "model")), (" on ", known(record, "dataset")), (" by ", strategy)]
    words: list[object] = [
        part for before, name in told if name for part in (before, el("b", show_scalar(name)))
    ]
    if ranks is not None:
        words += [" × ", el("b", show_count(ranks)), " rank" if ranks == 1 else " ranks"]
    when = moment(created.get("time"))
    words += [" · ", show_moment(when)] if when is not None else []
    return words or ["What was trained is not known."]


def _parent(created: dict[str, Any]) -> Html | None:
    parent = at(created, "parent", "run_id")
    if not parent:
        return None
    checkpoint = show_scalar(at(created, "parent", "checkpoint"))
    how = "Repeats " if at(created, "parent", "kind") == "reproduced" else "Continued from "
    return el("p", how, el("b", show_scalar(parent)), ", ", checkpoint, ".", class_="muted")


def _told_until(history: History) -> str:
    attempts = len(history.attempts)
    ended = history.outcome not in ("open", "evaluated")
    return ("in one attempt" if attempts == 1 else f"in {attempts} attempts") if ended else "up to this page"


def _still_open(record: Record, history: History) -> Html | None:
    """The run writes its own page before its end, so that page cannot know it; one from outside can."""
    if record.state is None and history.outcome in ("open", "evaluated"):
        command = el("code", f"uv run lockstep show {record.run.typed}")
        return el(
            "p", "Written while the run was still open; ", command, " tells how it ended.", class_="aside"
        )
    if record.state is not None and record.state.word == "running":
        return el(
            "p", "The run is going on: the page shows it as it stood when this was written.", class_="aside"
        )
    return None


def _log(record: Record, history: History) -> Html | None:
    """Of a run that failed, the end of the log that tells why: the failing rank's, server's or step's."""
    if record.state is None:
        return None
    steps = history.attempts[-1].steps if history.attempts else []
    told = culprit.log(record.run, record.state, steps)
    if told is None:
        return None
    name = Path(told["path"]).relative_to(record.run.path)
    lines = el("pre", "\n".join(told["lines"]), tabindex="0")
    return el("details", el("summary", f"The end of {name}"), lines, class_="log", open=True)


def _figures(record: Record, history: History) -> Html:
    training, test = at(record.results, "training"), at(record.results, "evaluation", "final", "test")
    epochs = objects(record.results.get("epochs"))
    held = at(epochs[-1] if epochs else None, "validation")
    waiting, ranks = number(at(training, "waiting_share")), whole(record.results.get("world_size"))
    waited = f"{show_percent(waiting)} waiting" if waiting is not None and ranks != 1 else None
    steps = whole(at(training, "steps"))
    done = None if steps is None else f"{counted(steps, 'step')}, {counted(len(epochs), 'epoch')}"
    accuracy = f"validation {show_percent(at(held, 'accuracy'))}" if held else None
    loss = f"validation {show_decimal(at(held, 'loss'))}" if held else None
    memory = [number(rank.get("peak_rss_bytes")) for rank in objects(record.results.get("ranks"))]
    peak = max((size for size in memory if size is not None), default=None)
    return facts(
        (
            ("Test accuracy", show_percent(at(test, "accuracy")), accuracy if test else "not evaluated"),
            ("Test loss", show_decimal(at(test, "loss")), loss if test else "not evaluated"),
            ("Samples/s", show_count(at(training, "samples_per_second")), waited),
            ("Training", show_seconds(at(training, "seconds")), done),
            (
                "Pipeline",
                show_seconds(history.seconds),
                _told_until(history) if history.attempts else None,
            ),
            ("Peak memory", show_bytes(peak), "the largest rank" if len(memory) > 1 else None),
        ),
        "figures",
    )
