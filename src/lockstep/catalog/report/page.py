"""The document: one file that asks for nothing, from nobody."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from lockstep.catalog.report import data, differences, files_of, headline, many, origins
from lockstep.catalog.report.evaluation import evaluation
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.learning import learning
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.ranks import time
from lockstep.catalog.report.read import Record

SCRIPTS = ("scale.js", "view.js", "chart.js", "tip.js", "lanes.js", "controls.js", "page.js")


@cache
def style() -> Html:
    """The one style block. It is ours, so it stands in the page as it is."""
    return Html(_own("style.css"))


@cache
def script() -> Html:
    """The one script. The page is whole without it; it adds values at the pointer, zoom and switches."""
    return Html("".join(_own(name) for name in SCRIPTS))


def policy() -> str:
    """Nothing is fetched: only the style and the script whose digests stand here have any effect."""
    return (
        f"default-src 'none'; style-src {_source(style())}; script-src {_source(script())}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def document(records: Sequence[Record]) -> str:
    """The whole page, of one run or of several side by side."""
    names = many.names_of(records)
    title = records[0].run.run_id if len(records) == 1 else f"{len(records)} runs compared"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy()),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{title} · Lockstep"),
        el("link", rel="icon", href="data:,"),
        el("style", style()),
    )
    parts = _one(records[0]) if len(records) == 1 else _several(records, names)
    body = el("body", HATCH, parts, data.block(records, names), el("script", script()))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _one(record: Record) -> list[Html]:
    history = told_by(record.events)
    outside = record.state is not None
    main = el(
        "main",
        headline.notes(record, history),
        learning([record], [""]),
        time([record], [""]),
        evaluation(record),
        origins.pipeline(history),
        el(
            "div",
            el("div", origins.parameters(record), None if outside else files_of.folder(record)),
            origins.provenance(record),
            class_="pair",
        ),
        files_of.digests([record], [""]) if outside else None,
    )
    return [headline.header(record, history), main]


def _several(records: Sequence[Record], names: list[str]) -> list[Html]:
    main = el(
        "main",
        many.notes(records, names),
        differences.parameters(records, names),
        learning(records, names),
        time(records, names),
        many.evaluation(records, names),
        differences.provenance(records, names),
        files_of.digests(list(records), names),
    )
    return [many.header(records, [told_by(record.events) for record in records]), main]


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# The pattern that marks waiting in every bar, so that the parts are told apart without colour.
HATCH = el(
    "svg",
    el(
        "defs",
        el(
            "pattern",
            el("path", d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2", class_="stripe"),
            id="hatch",
            width="6",
            height="6",
            patternUnits="userSpaceOnUse",
        ),
    ),
    class_="unseen",
    aria_hidden="true",
    width="0",
    height="0",
)
