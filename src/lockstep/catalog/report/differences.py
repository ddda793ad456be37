"""Parameters and provenance of several runs beside each other, with what differs marked."""

import shlex
from collections.abc import Sequence
from typing import Any

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import scrolling, section
from lockstep.catalog.report.values import DASH, counted, is_scalar, show_bytes, show_scalar

MOST_ROWS = 500
MOST_NAMED = 6  # differences that the lead names
DEEPEST = 6
ALWAYS_DIFFER = {"run_id", "time"}
Facts = dict[str, str]


def parameters(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The section that compares the runs' whole input."""
    found = [leaves(_parsed(record.parameters)) for record in records]
    return _section("parameters", "Parameters", "parameter", found, names)


def provenance(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The section that compares code, packages, machine and command."""
    found = [leaves(record.provenance) for record in records]
    return _section("provenance", "Provenance", "fact", found, names)


def leaves(value: object, prefix: str = "", depth: int = DEEPEST) -> Facts:
    """Every scalar of a nested value by its dotted path; a list of scalars is one, as a shell would quote it."""
    if prefix.endswith("bytes") and type(value) is int and value >= 1000:
        return {prefix: f"{show_bytes(value)} ({value:,})"}  # also exactly, so that no difference is hidden
    if is_scalar(value):
        return {prefix: show_scalar(value)}
    if isinstance(value, list) and all(is_scalar(entry) for entry in value):
        return {prefix: shlex.join(show_scalar(entry) for entry in value) or DASH}
    if depth == 0 or not isinstance(value, dict | list):
        return {prefix: "…"}
    members = value.items() if isinstance(value, dict) else enumerate(value)
    facts: Facts = {}
    for name, inner in members:
        facts.update(leaves(inner, f"{prefix}.{name}" if prefix else str(name), depth - 1))
        if len(facts) > 4 * MOST_ROWS:
            break
    return facts


def _parsed(text: str) -> dict[str, Any]:
    from lockstep.errors import ParametersError  # here, with the parser: one run alone needs neither
    from lockstep.strict_yaml import parse

    try:
        return parse(text, "parameters.yaml").value
    except ParametersError:
        return {}


def _section(anchor: str, title: str, noun: str, found: list[Facts], names: Sequence[str]) -> Html:
    keys = _together(found)[:MOST_ROWS]
    if not keys:
        return section(anchor, title, "Nothing was recorded that can be compared.")
    differing = [key for key in keys if len({facts.get(key) for facts in found}) > 1]
    head = [el("th", noun, scope="col"), *(el("th", name, scope="col") for name in names)]

    def of(wanted: list[str], caption: str) -> Html:
        rows = [_row(key, [facts.get(key) for facts in found], key in differing) for key in wanted]
        whole = el(
            "table",
            el("caption", caption, class_="unseen"),
            el("thead", el("tr", head)),
            el("tbody", rows),
            class_="compared",
        )
        return scrolling(caption, whole)

    alike = [key for key in keys if key not in differing]
    folded = el(
        "details",
        el("summary", f"{counted(len(alike), noun)} that {'is' if len(alike) == 1 else 'are'} the same"),
        of(alike, f"{title} that all runs share"),
    )
    return section(
        anchor,
        title,
        _lead(differing, len(keys), noun),
        of(differing, f"{title} that differ") if differing else None,
        folded if alike else None,
    )


def _together(found: list[Facts]) -> list[str]:
    """Every key once, in the order of the first run; a key that only others have stands by its siblings."""
    keys = list(dict.fromkeys(key for facts in found for key in facts))
    order = {key: index for index, key in enumerate(keys)}
    parents: dict[str, int] = {}
    for key in keys:
        parents.setdefault(key.rpartition(".")[0], order[key])
    return sorted(keys, key=lambda key: (parents[key.rpartition(".")[0]], order[key]))


def _lead(differing: list[str], count: int, noun: str) -> str:
    if not differing:
        return f"All {count:,} {noun}s are the same."
    telling = [key for key in differing if key not in ALWAYS_DIFFER]
    more = len(telling) - MOST_NAMED
    named = ", ".join(telling[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    verb = "differs" if len(differing) == 1 else "differ"
    return f"{len(differing):,} of {count:,} {noun}s {verb}" + (f": {named}." if named else ".")


def _row(key: str, values: list[str | None], differs: bool) -> Html:
    sign = [el("span", "≠", aria_hidden="true", class_="sign"), el("span", "differs: ", class_="unseen")]
    usual = max(set(values), key=values.count) if len(set(values)) < len(values) else None
    cells = [
        el(
            "td",
            el("i", "absent") if value is None else value,
            class_="odd" if differs and value != usual else None,
        )
        for value in values
    ]
    return el(
        "tr",
        el("th", sign if differs else None, key, scope="row"),
        cells,
        class_="differs" if differs else None,
    )
