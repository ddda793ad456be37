"""The pages' own markup. What fills them comes as JSON, and becomes text in the browser, never markup."""

from lockstep.catalog.report.bars import parts_legend
from lockstep.catalog.report.curves import swatch
from lockstep.catalog.report.learning import WORDS
from lockstep.catalog.report.markup import Html, el
from lockstep.catalog.report.page import HATCH

STATUSES = ("running", "succeeded", "failed", "killed", "interrupted", "unknown")
CHARTS = (
    ("loss", "Loss"),
    ("accuracy", "Accuracy"),
    ("grad_norm", "Gradient norm"),
    ("learning_rate", "Learning rate"),
    ("samples_per_second", "Samples/s"),
    ("waiting", "Waiting, share of a step"),
)
HINT = "words, or accuracy>0.95, strategy=ddp, ranks>=4, loss<0.1"


def table(catalog: str) -> str:
    """The table of runs."""
    search = el(
        "p",
        el("label", "Find runs", for_="find"),
        el("input", type="search", id="find", placeholder=HINT, autocomplete="off", spellcheck="false"),
        class_="find",
    )
    choose = el(
        "p",
        el("label", "Status", for_="status"),
        el(
            "select",
            el("option", "any", value=""),
            [el("option", word, value=word) for word in STATUSES],
            id="status",
        ),
        class_="status-choice",
    )
    compare = el("button", "Compare", type="button", id="compare", disabled=True)
    clear = el("button", "Clear ticks", type="button", id="clear", hidden=True)
    body = el(
        "body",
        el(
            "header",
            el("p", "Lockstep", class_="product"),
            el("h1", "Runs"),
            el("p", "The catalog ", el("code", catalog), class_="lead"),
        ),
        el(
            "main",
            el("div", search, choose, el("p", compare, clear, class_="acts"), class_="bar-of-tools"),
            el("p", "Reading the catalog ...", id="count", role="status", class_="muted small"),
            el(
                "div",
                el("table", el("caption", "Runs", class_="unseen"), el("thead"), el("tbody"), id="runs"),
                class_="scroll",
                role="region",
                aria_label="Runs",
                tabindex="0",
            ),
            el("p", el("button", "Show more", type="button", id="more", hidden=True)),
        ),
    )
    return _document("Runs · Lockstep", "table.js", body)


def live(run_id: str) -> str:
    """One run, drawn as it goes on."""
    charts = [
        el(
            "figure",
            el("figcaption", el("h3", title)),
            el("div", class_="stage"),
            class_="chart",
            data_chart=key,
        )
        for key, title in CHARTS
    ]
    splits = [
        el("li", swatch(f"{split} k-{'train' if split == 'steps' else split}"), words, data_split=split)
        for split, words in WORDS.items()
    ]
    controls = el(
        "div",
        el("ul", splits, class_="legend splits-of-lines"),
        el("div", class_="tools", id="tools", hidden=True),
        class_="controls",
    )
    lanes = el(
        "section",
        el("h2", "Where the time goes", id="time-title"),
        parts_legend(),
        el("figure", el("div", class_="stage"), class_="chart", id="lanes"),
        id="time",
        aria_labelledby="time-title",
        hidden=True,
    )
    body = el(
        "body",
        HATCH,
        el(
            "header",
            el("p", el("a", "All runs", href="/"), class_="product"),
            el("h1", run_id),
            el("p", el("span", "…", class_="badge open", id="state"), class_="badges", role="status"),
            el("p", id="about", class_="lead"),
            el("pre", class_="message", id="message", tabindex="0", hidden=True),
            el(
                "p",
                el("progress", id="progress", max="1", value="0", aria_label="Steps done"),
                class_="progress",
            ),
            el("dl", class_="figures", id="headline"),
            el("p", el("a", "Full report", id="report", href="/"), class_="muted"),
        ),
        el(
            "main",
            el(
                "section",
                el("h2", "Learning", id="learning-title"),
                controls,
                el("div", charts, class_="pair charts"),
                id="learning",
                aria_labelledby="learning-title",
            ),
            lanes,
            el(
                "section",
                el("h2", "Log", id="log-title"),
                el("pre", id="log", tabindex="0", aria_label="The end of the log"),
                id="said",
                aria_labelledby="log-title",
                hidden=True,
            ),
            data_run_id=run_id,
        ),
    )
    return _document(f"{run_id} · Lockstep", "live.js", body)


def _document(title: str, script: str, body: Html) -> str:
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("link", rel="stylesheet", href="/static/style.css"),
        el("script", src=f"/static/{script}", defer=True),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"
