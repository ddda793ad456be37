"""Where the run comes from and where its files are: pipeline, parameters, provenance, folder."""

import re
import shlex
from pathlib import Path
from urllib.parse import quote

from lockstep.catalog.report.bars import timeline
from lockstep.catalog.report.history import History
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import section
from lockstep.catalog.report.values import (
    DASH,
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
DEEPEST = 5
MOST_LINKS = 4  # of one kind
DIGITS = re.compile("([0-9]+)")
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
    groups = []
    single = {name: value for name, value in record.provenance.items() if not isinstance(value, dict)}
    nested = {name: value for name, value in record.provenance.items() if isinstance(value, dict)}
    for title, inner in (("", single), *nested.items()):
        facts = _flat("", inner, DEEPEST)[:MOST_FACTS]
        rows = [el("tr", el("th", name, scope="row"), el("td", value)) for name, value in facts]
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
    )


def _flat(prefix: str, value: object, depth: int) -> list[tuple[str, str]]:
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
        rows += _flat(f"{prefix} · {spoken}" if prefix else spoken, inner, depth - 1)
    return rows


def _in_order(place: Path, pattern: str) -> list[Path]:
    """Files whose names fit, rank-2 before rank-10."""

    def natural(path: Path) -> list[tuple[int, str]]:
        return [(len(part) if index % 2 else 0, part) for index, part in enumerate(DIGITS.split(path.name))]

    return sorted(place.glob(pattern), key=natural) if place.is_dir() else []


def folder(record: Record) -> Html:
    """The files that a reader may want next, as links beside this page."""
    run = record.run
    wanted = [
        (run.parameters, "every parameter: the input of the ranks"),
        (run.results, "the figures of this page"),
        (run.model, "model and optimizer; torch.load(..., weights_only=True)"),
        (run.provenance, "code, packages, machine, command"),
        (run.patch, "what was changed since the commit"),
        (run.events, "the run's history, each line bound to the one before"),
        (run.plan, "ranks, batches, threads"),
        *((path, "metrics, a line a step") for path in _in_order(run.metrics, "rank-*.jsonl")[:MOST_LINKS]),
        *((path, "what that process printed") for path in _in_order(run.logs, "*.log")[: 2 * MOST_LINKS]),
        *((path, "checkpoint") for path in _in_order(run.checkpoints, "step-*")[-3:]),
    ]
    links = []
    for path, about in wanted:
        name = str(path.relative_to(run.path))
        if path.exists():
            links.append(
                el("li", el("a", name, href=quote(name.encode(errors="replace"))), " ", el("span", about))
            )
    if not links:
        return section("files", "Files", "None of the run's files stands in its folder.")
    lead = "Beside this page, in the run's folder. The links work where the page still lies there."
    return section("files", "Files", lead, el("ul", links, class_="files"))
