"""What the server answers to a path: the table, a live run, a report, and the figures behind them."""

import threading
import time
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from lockstep import strict_json
from lockstep.catalog import listing
from lockstep.catalog.report import render_from_outside
from lockstep.catalog.report.page import policy as report_policy
from lockstep.catalog.run import Run, is_name
from lockstep.catalog.text import json_safe
from lockstep.errors import UsageError
from lockstep.files import printable
from lockstep.ui import live, pages

FRESH_SECONDS = 1.0  # how long one reading of the catalog serves everybody who asks
MOST_COMPARED = 24
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HTML = "text/html; charset=utf-8"
JSON = "application/json; charset=utf-8"
SCRIPT = "text/javascript; charset=utf-8"
CHARTS = tuple(f"catalog/report/{name}.js" for name in ("scale", "view", "chart", "tip", "lanes", "controls"))
OWN = {  # everything static, by its name in a request; no other file is ever read for one
    "style.css": ("text/css; charset=utf-8", ("catalog/report/style.css", "ui/ui.css")),
    "table.js": (SCRIPT, ("catalog/report/scale.js", "ui/filter.js", "ui/table.js")),
    "live.js": (SCRIPT, (*CHARTS, "ui/live.js")),
}


class Missing(Exception):
    """There is nothing under that name; the message says what there is not."""


@dataclass
class Answer:
    """A body with its media type, and headers beyond those that every answer has."""

    body: bytes
    kind: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Site:
    """The pages over one catalog. Several threads ask at once; the catalog is read once for all of them."""

    def __init__(self, catalog: Path) -> None:
        self.catalog = catalog
        self._reading = threading.Lock()
        self._read_at = -FRESH_SECONDS
        self._runs = Answer(b"", JSON)

    def answer(self, path: str, query: dict[str, list[str]]) -> Answer:
        """The answer to a path. Raises Missing, or UsageError where the query is not one."""
        match path.removeprefix("/").split("/"):
            case [""]:
                return _page(pages.table(str(self.catalog)))
            case ["run", run_id]:
                return _page(pages.live(self._run(run_id).run_id))
            case ["report"]:
                return self._report(query.get("run", []))
            case ["api", "runs"]:
                return self._listed()
            case ["api", "runs", run_id]:
                return _json(
                    live.state(self._run(run_id), _number(query, "after"), _number(query, "attempt"))
                )
            case ["static", name] if name in OWN:
                kind, files = OWN[name]
                return Answer(_own(files), kind)
        raise Missing("there is no such page: / lists the runs")

    def _run(self, run_id: str) -> Run:
        """A run by its whole id. The id is checked before it becomes part of any path."""
        if is_name(run_id):
            run = Run((self.catalog / run_id).resolve())
            if run.events.is_file():
                return run
        raise Missing("there is no such run in this catalog")

    def _report(self, run_ids: list[str]) -> Answer:
        runs = {run_id: self._run(run_id) for run_id in run_ids[: MOST_COMPARED + 1]}
        if not runs or len(runs) > MOST_COMPARED:
            raise UsageError(f"/report?run=ID&run=ID takes 1 to {MOST_COMPARED} runs")
        answer = Answer(render_from_outside(list(runs.values())).encode(errors="replace"), HTML)
        answer.headers["Content-Security-Policy"] = f"{report_policy()}; frame-ancestors 'none'"
        return answer

    def _listed(self) -> Answer:
        with self._reading:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._runs = _json({"runs": [_row(row) for row in listing.rows(self.catalog)]})
                self._runs.headers["ETag"] = f'"{sha256(self._runs.body).hexdigest()[:32]}"'
                self._read_at = time.monotonic()
            return Answer(self._runs.body, self._runs.kind, 200, dict(self._runs.headers))


COLUMNS = (
    *("run_id", "status", "cause", "tag", "strategy", "world_size", "dataset", "model"),
    *("accuracy", "loss", "test_accuracy", "test_loss", "samples_per_second", "seconds", "created"),
)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a run: no path of this machine, no age that changes by the second."""
    return {name: _short(row.get(name)) for name in COLUMNS}


def _short(value: object) -> object:
    return value[:200] if isinstance(value, str) else value


def _number(query: dict[str, list[str]], name: str) -> int:
    word = query.get(name, ["0"])[-1]
    if not (word.isascii() and word.isdigit() and len(word) <= 15):
        raise UsageError(f"{name} is a whole number")
    return int(word)


def _json(value: object) -> Answer:
    text = strict_json.encode(_shown(json_safe(value)), separators=(",", ":"))
    return Answer(text.encode(), JSON)


def _shown(value: Any) -> Any:
    """The value with all text in it printable: what the scripts put into a page is recorded by anybody."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(name): _shown(inner) for name, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list) else value


def _page(markup: str) -> Answer:
    return Answer(markup.encode(errors="replace"), HTML, 200, {"Content-Security-Policy": POLICY})


@cache
def _own(names: tuple[str, ...]) -> bytes:
    package = resources.files("lockstep")
    return b"".join(package.joinpath(name).read_bytes() for name in names)
