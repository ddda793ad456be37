"""What a run's history and results say of it, for lists: the same as long as the files are the same."""

from typing import Any, NamedTuple

from lockstep.catalog import events, status
from lockstep.catalog.report.history import seconds_in
from lockstep.catalog.report.values import at, figure, number, whole
from lockstep.catalog.run import Run
from lockstep.files import read_object

LONGEST_TEXT = 1000
_OLD_NAMES = {"accuracy": "test_accuracy", "loss": "test_loss"}  # of figures that a run's end repeats


class Facts(NamedTuple):
    """``accuracy`` and ``loss`` are the final model's on the validation split: whoever picks a run from a list must
    not pick on the test split, which has names of its own. ``process_*`` are those of the last attempt."""

    created: str | None
    tag: str | None
    strategy: str | None
    world_size: int | None
    dataset: str | None
    model: str | None
    parent: str | None
    parent_kind: str | None
    accuracy: float | str | None  # text: the name of a number that is not finite
    loss: float | str | None
    test_accuracy: float | str | None
    test_loss: float | str | None
    samples_per_second: float | None
    seconds: float | None
    word: str
    cause: str | None
    message: str | None
    rank: int | None
    attempt: int
    started: str | None
    finished: str | None
    pid: int | None
    process_host: str | None
    process_boot: str | None
    process_ticks: int | None


_REAL = (int, float, type(None))
_FIGURE = (int, float, str, type(None))
_TEXT = (str, type(None))
_COUNT = (int, type(None))
_ALLOWED = {
    "created": _TEXT, "tag": _TEXT, "strategy": _TEXT, "world_size": _COUNT, "dataset": _TEXT,
    "model": _TEXT, "parent": _TEXT, "parent_kind": _TEXT, "accuracy": _FIGURE, "loss": _FIGURE,
    "test_accuracy": _FIGURE, "test_loss": _FIGURE, "samples_per_second": _REAL, "seconds": _REAL, "word": (str,),
    "cause": _TEXT, "message": _TEXT, "rank": _COUNT, "attempt": (int,), "started": _TEXT, "finished": _TEXT,
    "pid": _COUNT, "process_host": _TEXT, "process_boot": _TEXT, "process_ticks": _COUNT,
}  # fmt: skip
_seen_good: set[tuple[type, ...]] = set()


def are_facts(value: Any) -> bool:
    """Whether a value that was kept in a file has the form of facts."""
    if type(value) is not list or len(value) != len(_ALLOWED):
        return False
    types = tuple(map(type, value))
    if types in _seen_good:
        return True
    good = all(kind in allowed for kind, allowed in zip(types, _ALLOWED.values(), strict=True))
    if good:
        _seen_good.add(types)
    return good


def files_of(run: Run) -> tuple[str, ...]:
    """The files that facts are read from."""
    folder = str(run.path)
    return f"{folder}/events.jsonl", f"{folder}/distributed_training_results.json"


def figures_of(results: dict[str, Any]) -> dict[str, float | str | None]:
    """Of the results, what stands in lists: the event that ends a run repeats it, so that lists open one file."""
    final = at(results, "evaluation", "final")
    return {
        f"{split}_{key}": figure(at(final, split, key))
        for split in ("validation", "test")
        for key in ("accuracy", "loss")
    } | {
        "samples_per_second": number(at(results, "training", "samples_per_second")),
    }


def repeated(figures: dict[str, Any]) -> dict[str, Any]:
    """What the event that ended a run repeats, by the names that ``figures_of`` gives."""
    return {_OLD_NAMES.get(key, key): value for key, value in figures.items()}


def facts_of(run: Run) -> Facts:
    """Read one run's history, and its results where the history does not repeat them."""
    history = events.outline(run)
    state, process = status.recorded(history)
    created: dict[str, Any] = next((event for event in history if event["event"] == "created"), {})
    summary, parent = created.get("summary"), created.get("parent")
    figures = _figures(run, history)
    return Facts(
        created=_text(created.get("time")) or (_text(history[0].get("time")) if history else None),
        tag=_text(created.get("tag")),
        strategy=_text(at(summary, "strategy")),
        world_size=whole(at(summary, "world_size")),
        dataset=_text(at(summary, "dataset")),
        model=_text(at(summary, "model")),
        parent=_text(at(parent, "run_id")),
        parent_kind=_text(at(parent, "kind")),
        accuracy=figure(figures.get("validation_accuracy")),
        loss=figure(figures.get("validation_loss")),
        test_accuracy=figure(figures.get("test_accuracy")),
        test_loss=figure(figures.get("test_loss")),
        samples_per_second=number(figures.get("samples_per_second")),
        seconds=seconds_in(history),
        word=state.word,
        cause=_text(state.cause),
        message=_text(state.message),
        rank=whole(state.rank),
        attempt=whole(state.attempt) or 0,
        started=_text(state.started),
        finished=_text(state.finished),
        pid=whole(state.pid),
        process_host=_text(process.get("host")),
        process_boot=_text(process.get("boot_id")),
        process_ticks=whole(process.get("start_ticks")),
    )


def _figures(run: Run, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Those of the run's end; while it has none, or where an earlier version wrote it, those of its results.

    Earlier versions repeated nothing, or the test split's figures alone, as ``accuracy`` and ``loss``.
    """
    ends = (event for event in reversed(history) if event["event"] in ("started", "finished"))
    end: dict[str, Any] = next(ends, {})
    figures = end.get("figures")
    if isinstance(figures, dict) and not _OLD_NAMES.keys() & figures.keys():
        return figures
    return figures_of(read_object(run.results))


def _text(value: object) -> str | None:
    return value[:LONGEST_TEXT] if isinstance(value, str) else None
