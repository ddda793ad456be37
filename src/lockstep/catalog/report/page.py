"""The document: one file that asks for nothing, from nobody."""

import base64
import hashlib
from functools import cache
from importlib import resources

from lockstep.catalog.report import headline, origins
from lockstep.catalog.report.evaluation import evaluation
from lockstep.catalog.report.history import told_by
from lockstep.catalog.report.learning import learning
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.ranks import time
from lockstep.catalog.report.read import Record


@cache
def style() -> Html:
    """The one style block. It is ours, so it stands in the page as it is."""
    return Html(resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8"))


def policy() -> str:
    """Nothing is fetched and nothing runs: only the style whose digest stands here is applied."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def document(record: Record) -> str:
    """The whole page."""
    history = told_by(record.events)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy()),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{record.run.run_id} · Lockstep"),
        el("link", rel="icon", href="data:,"),
        el("style", style()),
    )
    main = el(
        "main",
        headline.notes(record, history),
        learning(record),
        time(record),
        evaluation(record),
        origins.pipeline(history),
        el(
            "div",
            el("div", origins.parameters(record), origins.folder(record)),
            origins.provenance(record),
            class_="pair",
        ),
    )
    body = el("body", _HATCH, headline.header(record, history), main)
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


# The pattern that marks waiting in every bar, so that the parts are told apart without colour.
_HATCH = el(
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
