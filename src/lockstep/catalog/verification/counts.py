"""The results against the metrics that they were made from: counted again, line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.catalog.facts import figures_of, repeated
from lockstep.catalog.finding import Finding
from lockstep.catalog.report.values import at, mapping, objects, whole
from lockstep.catalog.verification.record import Record, differs, json_lines

_RESULTS = "distributed_training_results.json"


def findings(record: Record, ended: bool) -> Iterator[Finding]:
    """What the results say otherwise than the metrics; and metrics that are no JSON in their middle."""
    steps: dict[int, dict[int, int]] = {}
    for rank, files in record.metrics_files().items():
        steps[rank] = {}
        for path in files:
            yield from _count(path, steps[rank], rank)
    results = record.results
    if not results:
        return
    told = {
        number: each
        for each in objects(results.get("ranks"))
        if (number := whole(each.get("rank"))) is not None
    }
    for rank in sorted(told.keys() ^ steps.keys(), key=str):
        where = _RESULTS if rank in told else f"metrics/rank-{rank}.jsonl"
        yield Finding(where, f"tells of rank {rank}, of which {_RESULTS} or its metrics say nothing")
    for rank in sorted(told.keys() & steps.keys()):
        own = {"steps": len(steps[rank]), "samples": sum(steps[rank].values())}
        for key, counted in own.items():
            if told[rank].get(key) != counted:
                yield differs(_RESULTS, f"{key} of rank {rank}:", told[rank].get(key), "metrics", counted)
    common = set.intersection(*map(set, steps.values())) if steps else set()
    training = mapping(results.get("training"))
    totals: dict[str, int | None] = {
        "steps": max(common, default=None),
        "samples": sum(sum(each.values()) for each in steps.values()),
    }
    for key, total in totals.items():
        if training.get(key) != total:
            yield differs(_RESULTS, f"{key} in all:", training.get(key), "metrics", total)
    yield from _against_the_plan(record, ended)
    yield from _against_the_end(record, ended)


def _count(path: Path, steps: dict[int, int], rank: int) -> Iterator[Finding]:
    """Add a file's steps and samples; a step that was repeated counts as in its last attempt."""
    name = f"metrics/{path.name}"
    torn: int | None = None
    try:
        for number, line in json_lines(path):
            if torn is not None:
                yield Finding(name, f"line {torn} is no JSON object, and lines follow it")
            torn = number if line is None else None
            step, samples = at(line, "step"), at(line, "samples")
            if at(line, "kind") == "step" and type(step) is int and type(samples) is int:
                steps[step] = samples
            if at(line, "kind") == "start" and at(line, "rank") != rank:
                yield differs(name, "the rank is", at(line, "rank"), "its name", rank)
    except OSError as error:
        yield Finding(name, f"cannot be read: {error.strerror}")


def _against_the_end(record: Record, ended: bool) -> Iterator[Finding]:
    """What the last event repeats of them, for lists."""
    told = record.last("finished").get("figures")
    if told is None or not ended:
        return
    known = repeated(mapping(told))
    old = known.keys() != told.keys()  # written by an earlier version, which repeated less
    for key, value in figures_of(record.results).items():
        if known.get(key) != value and not (old and key not in known):
            yield differs(_RESULTS, f"{key.replace('_', ' ')}:", value, "events.jsonl", known.get(key))


def _against_the_plan(record: Record, ended: bool) -> Iterator[Finding]:
    plan, results = record.plan, record.results
    done, planned = at(results, "training", "steps"), plan.get("steps")
    if ended and record.last("finished").get("status") == "succeeded":
        if done != planned:
            yield differs(_RESULTS, "steps in all:", done, "distributed.json", planned)
        final: Any = at(results, "evaluation", "final", "step")
        if final != planned:
            yield differs(_RESULTS, "the final model is that of step", final, "distributed.json", planned)
    test = at(results, "evaluation", "final", "test", "samples")
    if test is not None and test != at(plan, "splits", "test"):
        yield differs(_RESULTS, "test samples", test, "distributed.json", at(plan, "splits", "test"))
