"""Several runs side by side: the top of the page and the test split; the rest is shared with one run's page."""

from collections.abc import Sequence

from lockstep.catalog.report.curves import COLOURS, swatch
from lockstep.catalog.report.headline import SECTIONS, created_of, known, standing
from lockstep.catalog.report.history import History
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.read import Record
from lockstep.catalog.report.tables import scrolling, section
from lockstep.catalog.report.values import (
    DASH,
    at,
    moment,
    number,
    show_count,
    show_decimal,
    show_moment,
    show_percent,
    show_scalar,
    show_seconds,
)

MOST_RUNS = 24
FIGURES = (
    ("validation accuracy", ("evaluation", "final", "validation", "accuracy"), show_percent, max),
    ("validation loss", ("evaluation", "final", "validation", "loss"), show_decimal, min),
    ("test accuracy", ("evaluation", "final", "test", "accuracy"), show_percent, max),
    ("test loss", ("evaluation", "final", "test", "loss"), show_decimal, min),
    ("samples/s", ("training", "samples_per_second"), show_count, max),
    ("waiting", ("training", "waiting_share"), show_percent, None),
    ("training", ("training", "seconds"), show_seconds, min),
)
CHOSEN_BY = 2  # of the figures: they stand right beside the runs, on a phone as well
SPLITS = ("train", "validation", "test")


def names_of(records: Sequence[Record]) -> list[str]:
    """A short name for each run: its tag where that tells it from the others, else its id."""
    tags = [_tag(record) for record in records]
    ids = [record.run.run_id for record in records]
    return [
        tag if tag and len(tag) <= 40 and tags.count(tag) == 1 and tag not in ids else run_id
        for tag, run_id in zip(tags, ids, strict=True)
    ]


def header(records: Sequence[Record], histories: Sequence[History]) -> Html:
    """The banner: how many runs, what they have in common, and their figures in one table."""
    anchors = sorted(
        ((anchor, name) for anchor, name in SECTIONS if anchor != "pipeline"),
        key=lambda part: part[0] != "parameters",  # as on the page: what differs comes first
    )
    return el(
        "header",
        el("p", "Lockstep, side by side", class_="product"),
        el("h1", f"{len(records)} runs compared"),
        el("p", _common(records), class_="lead"),
        _summary(records, histories),
        el(
            "nav",
            [el("a", name, href=f"#{anchor}") for anchor, name in anchors],
            aria_label="Parts of this page",
        ),
    )


def notes(records: Sequence[Record], names: Sequence[str]) -> Html | None:
    """What is missing from which run."""
    lines = [
        el("li", el("b", name, ": "), gap)
        for record, name in zip(records, names, strict=True)
        for gap in record.gaps
    ]
    return el("aside", el("ul", lines), class_="notes", aria_label="Notes") if lines else None


def evaluation(records: Sequence[Record], names: Sequence[str]) -> Html:
    """The section that compares loss and accuracy on every split, of the last checkpoints."""
    rows = []
    for record, name in zip(records, names, strict=True):
        final = at(record.results, "evaluation", "final")
        cells = [
            el("td", show(at(final, split, key)), class_="n")
            for split in SPLITS
            for key, show in (("loss", show_decimal), ("accuracy", show_percent))
        ]
        rows.append(el("tr", el("th", name, scope="row"), cells))
    head = [
        el("th", f"{split} {key}", scope="col", class_="n")
        for split in SPLITS
        for key in ("loss", "accuracy")
    ]
    caption = "Loss and accuracy per split"
    whole = el(
        "table",
        el("caption", caption, class_="unseen"),
        el("thead", el("tr", el("th", "run", scope="col"), head)),
        el("tbody", rows),
    )
    evaluated = sum(isinstance(at(record.results, "evaluation", "final"), dict) for record in records)
    lead = "Measured on each run's last checkpoint."
    if evaluated < len(records):
        lead = f"{evaluated} of {len(records)} runs were evaluated. " + lead
    return section("test", "On the test split", lead, scrolling(caption, whole))


def _tag(record: Record) -> str:
    tag = record.results.get("tag") or created_of(record).get("tag")
    return show_scalar(tag) if isinstance(tag, str) and tag.strip() else ""


def _common(records: Sequence[Record]) -> list[object]:
    words: list[object] = []
    for before, key in (("", "model"), (" on ", "dataset"), (" by ", "strategy")):
        found = list(dict.fromkeys(show_scalar(known(record, key)) for record in records))
        words += [
            before,
            [[" and " if index else None, el("b", each)] for index, each in enumerate(found[:4])],
        ]
        words += [" and others"] if len(found) > 4 else []
    return words


def _summary(records: Sequence[Record], histories: Sequence[History]) -> Html:
    values = [[number(at(record.results, *path)) for record in records] for _, path, _, _ in FIGURES]
    best = [
        choose([value for value in column if value is not None], default=None) if choose else None
        for column, (_, _, _, choose) in zip(values, FIGURES, strict=True)
    ]
    rows = []
    for index, (record, history) in enumerate(zip(records, histories, strict=True)):
        word, kind = standing(record, history)
        cells = [
            el(
                "td",
                _figure(show(column[index]), column[index] is not None and column[index] == most),
                class_="n",
            )
            for column, most, (_, _, show, _) in zip(values, best, FIGURES, strict=True)
        ]
        rows.append(
            el(
                "tr",
                el(
                    "th",
                    swatch(f"train k-run{index % COLOURS}"),
                    el("span", record.run.run_id, class_="id"),
                    el("span", _tag(record), class_="tagged") if _tag(record) else None,
                    scope="row",
                    class_="run",
                ),
                cells[:CHOSEN_BY],
                el("td", el("span", word, class_=kind)),
                cells[CHOSEN_BY:],
                el("td", show_scalar(known(record, "strategy"))),
                el("td", show_count(known(record, "world_size")), class_="n"),
                el(
                    "td",
                    show_moment(moment(created_of(record).get("time"))).removesuffix(" UTC") or DASH,
                    class_="n",
                ),
            )
        )
    figures: list[tuple[str, str | None]] = [(title, "n") for title, *_ in FIGURES]
    titles = [("run", None), *figures[:CHOSEN_BY], ("status", None), *figures[CHOSEN_BY:]]
    titles += [("strategy", None), ("ranks", "n"), ("began, UTC", "n")]
    head = [el("th", title, scope="col", class_=kind) for title, kind in titles]
    return scrolling(
        "The runs",
        el(
            "table",
            el("caption", "The runs", class_="unseen"),
            el("thead", el("tr", head)),
            el("tbody", rows),
            class_="summary",
        ),
    )


def _figure(text: str, best: bool) -> object:
    return [el("b", text), el("span", " (best)", class_="unseen")] if best else text
