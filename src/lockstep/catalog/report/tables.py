"""Tables and lists of figures."""

from collections.abc import Sequence

from lockstep.catalog.report.markup import Html, el


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> Html:
    """A table whose first ``words`` columns are text and the others figures; a wide one scrolls alone."""
    kinds = [None if index < words else "n" for index in range(len(columns))]
    head = [el("th", name, scope="col", class_=kind) for name, kind in zip(columns, kinds, strict=True)]
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            [el("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)],
        )
        for row in rows
    ]
    return scrolling(
        caption,
        el("table", el("caption", caption, class_="unseen"), el("thead", el("tr", head)), el("tbody", body)),
    )


def scrolling(name: str, *children: object) -> Html:
    """A part that may be wider than the page: it scrolls alone, by keyboard as well."""
    return el("div", children, class_="scroll", role="region", aria_label=name, tabindex="0")


def facts(pairs: Sequence[tuple[str, object, object]], kind: str) -> Html:
    """Names, values, and a word below each."""
    return el(
        "dl",
        [
            el("div", el("dt", name), el("dd", value), el("dd", note, class_="note") if note else None)
            for name, value, note in pairs
        ],
        class_=kind,
    )


def section(anchor: str, title: str, lead: object, *children: object) -> Html:
    """A part of the page under its heading, with one sentence that says what there is to see."""
    return el(
        "section",
        el("h2", title, id=f"{anchor}-title"),
        el("p", lead, class_="lead") if lead else None,
        children,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )
