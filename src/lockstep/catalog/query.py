"""Which runs, in which order: filters on the columns of the list and on any parameter.

A condition is a column or a dotted parameter, an operator and a value: ``accuracy>0.95``, ``strategy=ddp``,
``training.learning_rate<=1e-3``, ``tag~baseline``. Values may carry units where the column has them: ``95%``,
``duration>10min``. ``accuracy`` and ``loss`` are the validation split's; the test split's are ``test_accuracy`` and
``test_loss``. A missing value satisfies ``!=`` and nothing else; ``tag=`` finds the runs without a tag.
"""

import math
import operator
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.catalog import listing
from lockstep.catalog.query_values import instant, parameter_is, quantity
from lockstep.catalog.report.values import moment
from lockstep.errors import UsageError
from lockstep.files import printable
from lockstep.strict_json import real

STATUSES = ("succeeded", "failed", "interrupted", "killed", "running", "unknown")
_CONDITION = re.compile(r"\s*([^\s=!<>~]+)\s*(==|!=|>=|<=|!~|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Column:
    """A column of the list: its key in a row, what its values are, and whether the largest come first."""

    key: str
    kind: str  # text, number, share, seconds, time
    largest_first: bool = True


COLUMNS = {
    "run": Column("run_id", "text", False),
    "status": Column("status", "text", False),
    "cause": Column("cause", "text", False),
    "tag": Column("tag", "text", False),
    "strategy": Column("strategy", "text", False),
    "ranks": Column("world_size", "number"),
    "data": Column("dataset", "text", False),
    "model": Column("model", "text", False),
    "accuracy": Column("accuracy", "share"),
    "loss": Column("loss", "number", False),
    "test_accuracy": Column("test_accuracy", "share"),
    "test_loss": Column("test_loss", "number", False),
    "samples/s": Column("samples_per_second", "number"),
    "duration": Column("seconds", "seconds"),
    "created": Column("created", "time"),
    "age": Column("age_seconds", "seconds", False),
    "parent": Column("parent", "text", False),
}
_ALSO = {
    "run_id": "run", "id": "run", "world_size": "ranks", "dataset": "data", "samples_per_second": "samples/s",
    "seconds": "duration", "age_seconds": "age", "validation_accuracy": "accuracy", "validation_loss": "loss",
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    """What was asked for. ``sort`` is a column or parameter, with ``:asc`` or ``:desc`` where that matters."""

    where: Sequence[str] = ()
    tags: Sequence[str] = ()
    statuses: Sequence[str] = ()
    since: str | None = None
    sort: str | None = None
    limit: int | None = None


@dataclass
class Answer:
    """The rows that were asked for, and the columns and parameters named; the latter's values stand in each row."""

    rows: list[dict[str, Any]]
    parameters: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    total: int = 0


Test = Callable[[dict[str, Any]], bool]


def ask(catalog: Path, query: Query) -> Answer:
    """The rows of a catalog that fit. Raises UsageError for a query that nothing could fit."""
    now = time.time()
    conditions = [_split(text) for text in query.where]
    wanted, direction = _order(query.sort)
    simple = [_simple_tests(query, now)]
    names = [name for name, _, _ in conditions] + ([wanted] if wanted else [])
    parameters = list(dict.fromkeys(name for name in names if _column(name) is None))
    columns = [_ALSO.get(name, name) for name in names if name not in parameters]
    answer = Answer(listing.rows(catalog), parameters, columns)
    answer.total = len(answer.rows)
    if parameters:
        _add_parameters(catalog, answer)
    tests = [_test(name, sign, value) for name, sign, value in conditions]
    answer.rows = [row for row in answer.rows if all(test(row) for test in [*simple, *tests])]
    if wanted:
        answer.rows = _sorted(answer.rows, wanted, direction)
    if query.limit is not None:
        answer.rows = answer.rows[: query.limit]
    return answer


def _split(text: str) -> tuple[str, str, str]:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--where {text!r}: a column, one of = != < <= > >= ~ !~, and a value are allowed: accuracy>0.95"
        )
    name, sign, value = found.groups()
    return name, "=" if sign == "==" else sign, value


def _order(sort: str | None) -> tuple[str | None, bool | None]:
    """The column to sort by, and whether the largest come first (None: as suits the column)."""
    if sort is None:
        return None, None
    name, colon, direction = sort.partition(":")
    if not name or (colon and direction not in ("asc", "desc")):
        raise UsageError(f"--sort {sort!r}: COLUMN, COLUMN:asc or COLUMN:desc are allowed")
    return name, None if not colon else direction == "desc"


def _simple_tests(query: Query, now: float) -> Test:
    """--tag, --status and --since in one test."""
    statuses = {word for words in query.statuses for word in words.split(",")}
    for word in statuses - set(STATUSES):
        raise UsageError(f"--status {word!r}: allowed are {', '.join(STATUSES)}{_meant(word, STATUSES)}")
    if query.limit is not None and query.limit < 1:
        raise UsageError(f"--limit {query.limit}: 1 or more are allowed")
    since = None if query.since is None else instant(query.since, now, "--since")
    tags = set(query.tags)

    def test(row: dict[str, Any]) -> bool:
        if (tags and row["tag"] not in tags) or (statuses and row["status"] not in statuses):
            return False
        return since is None or (moment(row["created"]) or 0.0) >= since

    return test


def _column(name: str) -> Column | None:
    return COLUMNS.get(_ALSO.get(name, name))


def _test(name: str, sign: str, text: str) -> Test:
    """One condition of --where as a test of a row."""
    column = _column(name)
    if column is None:
        matches = parameter_is(name, sign, text)
        return lambda row: matches(row["parameters"].get(name))
    key = column.key
    if not text:
        if sign not in ("=", "!="):
            raise UsageError(f"--where {name}{sign}: a value is missing")
        return lambda row: (row[key] is None) == (sign == "=")
    if column.kind == "text":
        return _text_test(name, key, sign, text)
    if sign not in _COMPARE:
        raise UsageError(f"--where {name}{sign}{text}: {name} is a figure: = != < <= > >= are allowed")
    compare, wanted = _COMPARE[sign], quantity(text, column.kind, f"--where {name}{sign}{text}")
    read: Callable[[Any], float | None] = moment if column.kind == "time" else real

    def test(row: dict[str, Any]) -> bool:
        found = read(row[key])
        return sign == "!=" if found is None else compare(found, wanted)

    return test


def _text_test(name: str, key: str, sign: str, text: str) -> Test:
    if sign in ("~", "!~"):
        part = text.casefold()
        return lambda row: (part in (row[key] or "").casefold()) == (sign == "~")
    if sign not in ("=", "!="):
        raise UsageError(f"--where {name}{sign}{text}: {name} is text: = != ~ !~ are allowed")
    return lambda row: (row[key] == text) == (sign == "=")


def _add_parameters(catalog: Path, answer: Answer) -> None:
    """Give each row the parameters that were asked for. Raises UsageError where no run has one of them."""
    from lockstep.catalog import run_parameters

    found = run_parameters.of_runs(catalog, [row["run_id"] for row in answer.rows])
    for name in answer.parameters:
        if found and not any(name in flat for flat in found.values()):
            known = {key for flat in found.values() for key in flat}
            raise UsageError(
                f"no column and no run's parameter is called {printable(name)!r}: columns are "
                f"{', '.join(COLUMNS)}; parameters are dotted: training.learning_rate"
                f"{_meant(name, [*COLUMNS, *_ALSO, *sorted(known)])}"
            )
    for row in answer.rows:
        flat = found.get(row["run_id"], {})
        row["parameters"] = {name: flat.get(name) for name in answer.parameters}


def _sorted(rows: list[dict[str, Any]], name: str, largest_first: bool | None) -> list[dict[str, Any]]:
    """In order of a column, the newest first among equals; runs without a value, or with NaN, come last."""
    column = _column(name)
    if largest_first is None:
        largest_first = column.largest_first if column else False

    def value(row: dict[str, Any]) -> Any:
        found = row[column.key] if column else row["parameters"].get(name)
        if column and column.kind in ("number", "share", "seconds"):
            figure = real(found)
            return None if figure is None or math.isnan(figure) else figure  # NaN has no place in an order
        return found

    having = [row for row in rows if value(row) is not None]
    without = [row for row in rows if value(row) is None]
    return sorted(having, key=lambda row: _comparable(value(row)), reverse=largest_first) + without


def _comparable(value: Any) -> tuple[int, Any]:
    """Figures before text before anything else, each in its own order."""
    if isinstance(value, int | float):
        return 0, value
    return (1, value) if isinstance(value, str) else (2, str(value))


def _meant(word: str, candidates: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word[:100], list(candidates), n=1)
    return f"; did you mean {printable(near[0])}?" if near else ""
