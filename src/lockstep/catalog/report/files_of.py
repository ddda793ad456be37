"""The run's files: those that a reader may want next, and the size and digest of every one that is sealed."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import section, table
from lockstep.catalog.report.values import at, counted, show_bytes, whole
from lockstep.catalog.run import Run

MOST_LINKS = 4  # of one kind
MOST_CHECKPOINTS = 3  # the newest, and the best beside them
MOST_FILES = 1000  # of the table of digests
DIGITS = re.compile("([0-9]+)")


def folder(record: Record) -> Html:
    """On the page inside the run's folder: links beside it. The seal comes after that page."""
    run = record.run
    best = best_checkpoint(run, record.results)
    newest = _in_order(run.checkpoints, "step-*")[-MOST_CHECKPOINTS:]
    kept = newest if best is None or best in newest else [best, *newest]
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
        *((path, "checkpoint" + (", the best on validation" if path == best else "")) for path in kept),
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


def best_checkpoint(run: Run, results: dict[str, Any]) -> Path | None:
    """The checkpoint of the model that was best on validation, where it was kept."""
    step = whole(at(results, "evaluation", "best", "step"))
    path = run.checkpoints / f"step-{step:08d}" if step is not None and step < 10**9 else None
    return path if path is not None and path.is_dir() else None


def digests(records: list[Record], names: list[str]) -> Html:
    """On a page outside: every file of each run with its size and SHA-256, as the seal has them."""
    parts = [
        _of_run(record, name if len(records) > 1 else "") for record, name in zip(records, names, strict=True)
    ]
    lead = "As each run's seal recorded them; lockstep verify RUN compares the bytes."
    return section("files", "Files", lead, parts)


def _of_run(record: Record, name: str) -> list[Html | None]:
    of = f" of {name}" if name else ""
    where = el("p", "In ", el("code", str(record.run.path)), class_="muted small path")
    heading = el("h3", name) if name else None
    if not record.sealed:
        return [heading, where, el("p", "The run is not sealed: no digests were recorded.", class_="muted")]
    rows = [
        [path, show_bytes(entry["bytes"]), el("code", entry["sha256"], class_="digest")]
        for path, entry in sorted(record.sealed.items())[:MOST_FILES]
    ]
    total = sum(entry["bytes"] for entry in record.sealed.values())
    words = f"{counted(len(record.sealed), 'file')}{of}, {show_bytes(total)}"
    left_out = f" (the first {MOST_FILES:,})" if len(record.sealed) > MOST_FILES else ""
    listed = table(f"Files{of}", ("file", "size", "SHA-256"), rows)
    return [heading, where, el("details", el("summary", words + left_out), listed, class_="digests")]


def _in_order(place: Path, pattern: str) -> list[Path]:
    """Files whose names fit, rank-2 before rank-10."""

    def natural(path: Path) -> list[tuple[int, str]]:
        return [(len(part) if index % 2 else 0, part) for index, part in enumerate(DIGITS.split(path.name))]

    return sorted(place.glob(pattern), key=natural) if place.is_dir() else []
