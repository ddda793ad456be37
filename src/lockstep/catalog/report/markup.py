"""HTML and SVG by construction: whatever is not markup already is escaped on its way into an element."""

import html
from collections.abc import Iterable

from lockstep import files

LONGEST_TEXT = 20_000  # characters of one recorded text; more would drown the page
VOID = {"meta", "link", "br", "input"}


class Html(str):
    """Markup that this package made. Any other string is recorded text, and is escaped."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Recorded text as text: control and bidirectional characters become visible, `<` stays a character."""
    recorded = str(value)
    if len(recorded) > LONGEST_TEXT:
        recorded = f"{recorded[:LONGEST_TEXT]}… ({len(recorded) - LONGEST_TEXT} more characters)"
    return Html(html.escape(files.printable(recorded), quote=True))


def join(children: Iterable[object]) -> Html:
    """Children in order: markup as it is, nested lists flattened, None left out, the rest escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(escaped(child))
    return Html("".join(parts))


def el(element: str, *children: object, **attributes: object) -> Html:
    """One element. In attribute names `class_` is class and `_` is `-`; None and False leave one out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped("" if value is True else value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if element in VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{join(children)}</{element}>")
