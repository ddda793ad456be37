"""The test split: loss and accuracy, the confusion matrix, and every class."""

from typing import Any

from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.matrix import counts_of, heat_map, mistakes
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import scrolling, section, table
from lockstep.catalog.report.values import (
    at,
    objects,
    show_count,
    show_decimal,
    show_percent,
    show_scalar,
    whole,
)

TITLE = "On the test split"


def evaluation(record: Record) -> Html:
    """The section of the page."""
    final, best = (at(record.results, "evaluation", which) for which in ("final", "best"))
    if not isinstance(final, dict):
        return section("test", TITLE, "The run was not evaluated.")
    counts = counts_of(at(final, "test", "confusion"))
    listed = at(record.results, "evaluation", "classes")
    names = [show_scalar(name) for name in listed][: len(counts)] if isinstance(listed, list) else []
    names += [str(index) for index in range(len(names), len(counts))]
    matrix = el("figure", scrolling("Confusion matrix", heat_map(counts, names))) if counts else None
    classes = _classes(objects(at(final, "test", "per_class")))
    side_by_side = el("div", matrix, classes, class_="pair" + (" large" if len(counts) > 12 else ""))
    return section("test", TITLE, _mistaken(counts, names), _splits(final, best), side_by_side)


def _mistaken(counts: list[list[int]], names: list[str]) -> str:
    if not counts:
        return "No confusion matrix was recorded."
    samples = sum(map(sum, counts))
    wrong = sum(sum(row) - row[index] for index, row in enumerate(counts))
    if not wrong:
        return f"All {samples:,} samples were recognised."
    lead = f"{wrong:,} of {samples:,} samples were taken for another class"
    if wrong == 1:
        return f"1 of {samples:,} samples was taken for another class."
    often = [
        f"{names[true]} for {names[other]} ({count:,})"
        for true, other, count in mistakes(counts)
        if count > 1
    ]
    return f"{lead}, most often {', '.join(often)}." if often else f"{lead}, no two of them in the same way."


def _splits(final: dict[str, Any], best: object) -> Html:
    """Final and best checkpoint side by side; one of them where they are the same."""
    same = whole(at(best, "step")) == whole(final.get("step"))
    shown = [final] if same or not isinstance(best, dict) else [final, best]
    columns = ["split", "samples", "loss", "accuracy", "loss, best", "accuracy, best"][: 2 + 2 * len(shown)]
    rows = []
    for split in ("train", "validation", "test"):
        figures = [
            show(at(one, split, key))
            for one in shown
            for key, show in (("loss", show_decimal), ("accuracy", show_percent))
        ]
        rows.append([split, show_count(at(final, split, "samples")), *figures])
    about = f"Measured on the last checkpoint, after step {show_count(final.get('step'))}"
    if same and isinstance(final.get("validation"), dict):
        about += ", which is also the best on validation"
    elif len(shown) == 2:
        about += f", and on the best on validation, after epoch {show_count(at(best, 'epoch'))}"
    told = el("p", f"{about}.", class_="muted")
    return el("div", table("Loss and accuracy per split", columns, rows), told, class_="splits")


def _classes(per_class: list[dict[str, Any]]) -> Html | None:
    if not per_class:
        return None
    rows = [
        [
            show_scalar(entry.get("class")),
            show_percent(entry.get("precision")),
            show_percent(entry.get("recall")),
            show_count(entry.get("support")),
        ]
        for entry in per_class[:1000]
    ]
    columns = ("class", "precision", "recall", "samples")
    return el("div", table("Precision and recall per class", columns, rows), class_="tall")
