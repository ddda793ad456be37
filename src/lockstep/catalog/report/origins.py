"""Where the run comes from: pipeline, parameters, provenance."""

import re
import shlex

from lockstep.catalog.report.bars import timeline
from lockstep.catalog.report.history import History
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import section
from lockstep.catalog.report.values import (
    DASH,
    counted,
    is_scalar,
    number,
    show_bytes,
    show_moment,
    show_scalar,
    show_seconds,
)

MOST_ATTEMPTS = 10
MOST_STEPS = 50
MOST_FACTS = 400
MOST_OPEN = 30  # facts of one kind
DEEPEST = 5
KEY = re.compile(r"^(\s*(?:- )?)([A-Za-z_][\w.-]*)(:)", re.MULTILINE)


def pipeline(history: History) -> Html:
    """The steps of each attempt on an axis of time."""
    shown = history.attempts[-MOST_ATTEMPTS:]
    parts: list[object] = []
    for attempt in shown:
        attempt.steps = attempt.steps[:MOST_STEPS]
        if len(history.attempts) > 1:
            parts.append(el("h3", f"Attempt {attempt.number}, {show_moment(attempt.started)}"))
        parts.append(timeline(attempt) if attempt.steps else el("p", "No step began.", class_="muted"))
    if not shown:
        lead = "No history was recorded."
    elif len(history.attempts) == 1:
        lasted = show_seconds(shown[0].seconds)
        lead = f"Began {show_moment(shown[0].started)}; the last event came {lasted} later."
    else:
        lead = f"{len(history.attempts)} attempts, {show_seconds(history.seconds)} together."
    return section("pipeline", "Pipeline", lead, parts)


def parameters(record: Record) -> Html:
    """parameters.yaml as it stands in the folder."""
    if not record.parameters:
        return section("parameters", "Parameters", "No parameters were recorded.")
    return section(
        "parameters",
        "Parameters",
        "The whole input of the ranks, every default written out.",
        el("pre", _keys_marked(record.parameters), tabindex="0", aria_label="parameters.yaml"),
    )


def _keys_marked(yaml: str) -> list[object]:
    pieces: list[object] = []
    end = 0
    for found in KEY.finditer(yaml[:20_000]):
        pieces += [yaml[end : found.start(2)], el("b", found.group(2))]
        end = found.end(2)
    return [*pieces, yaml[end:]]


def provenance(record: Record) -> Html:
    """Which code, packages, machine and command made this run."""
    groups, folded = [], []
    single = {name: value for name, value in record.provenance.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in record.provenance.items() if isinstance(value, dict)}
    for title, inner in (("", single), *nested.items()):
        facts = flat("", inner, DEEPEST)[:MOST_FACTS]
        rows = [el("tr", el("th", name, scope="row"), el("td", value)) for name, value in facts]
        if len(rows) > MOST_OPEN:  # such as a line for each package: on a page for people, folded away
            words = f"{title.replace('_', ' ')}: {counted(len(rows), 'fact')}"
            folded.append(el("details", el("summary", words), el("table", el("tbody", rows), class_="facts")))
            continue
        if title and rows:
            rows.insert(
                0, el("tr", el("th", title.replace("_", " "), scope="rowgroup", colspan="2"), class_="group")
            )
        groups.append(el("tbody", rows) if rows else None)
    if not record.provenance:
        return section("provenance", "Provenance", "Nothing was recorded.")
    return section(
        "provenance",
        "Provenance",
        "Which code, packages, machine and command made this run.",
        el("table", el("caption", "Provenance", class_="unseen"), groups, class_="facts"),
        folded,
    )


def flat(prefix: str, value: object, depth: int) -> list[tuple[str, str]]:
    """Nested facts as rows; a list of words is one row, quoted as a shell would read it."""
    if is_scalar(value):
        sized = prefix.endswith("bytes") and number(value) is not None
        return [(prefix, show_bytes(value) if sized else show_scalar(value))]
    if isinstance(value, list) and all(is_scalar(entry) for entry in value):
        return [(prefix, shlex.join(show_scalar(entry) for entry in value) or DASH)]
    if depth == 0:
        return [(prefix, "…")]
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    rows = []
    for name, inner in members:
        word = str(name)
        spoken = word.replace("_", " ") if word.islower() else word  # OMP_NUM_THREADS stays as it is
        rows += flat(f"{prefix} · {spoken}" if prefix else spoken, inner, depth - 1)
    return rows
