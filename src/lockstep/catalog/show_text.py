"""What show.py gathered, put into words and tables."""

import shlex
from typing import Any

from lockstep.catalog.report.values import (
    mapping,
    moment,
    number,
    show_bytes,
    show_count,
    show_decimal,
    show_moment,
    show_percent,
    show_seconds,
)
from lockstep.catalog.tail import show_step
from lockstep.catalog.text import Table, cell, lines_of

Block = tuple[str, Table | list[str]]
"""A heading, and what stands below it."""

RANK_HEADINGS = (
    "rank",
    "samples",
    "samples/s",
    "steps",
    "step time",
    "computing",
    "waiting",
    "data",
    "waits",
    "processor",
    "memory",
)


def blocks(found: dict[str, Any]) -> list[Block]:
    """The overview as headings with tables and lines below them."""
    result: list[Block] = [("", Table(_facts(found)))]
    if found["message"]:
        result.append(("Message", lines_of(found["message"])))
    if found["warnings"]:
        result.append(("Warnings", [cell(warning, 300) for warning in found["warnings"][:10]]))
    if found["steps"]:
        result.append(("Pipeline", _steps(found)))
    if found["evaluation"]:
        result.append(("Results", _evaluation(found["evaluation"])))
    if found["ranks"]:
        result.append(("Ranks", _ranks(found["ranks"])))
    if found["log"]:
        result.append((f"The end of {cell(found['log']['path'], 200)}", found["log"]["lines"]))
    if found["files"]:
        result.append(("Files", Table([(name, cell(path, 300)) for name, path in found["files"].items()])))
    return result


def step_blocks(view: dict[str, Any]) -> list[Block]:
    """A pipeline step's view."""
    rows = [
        (
            str(each["attempt"]),
            show_moment(each["started"]),
            cell(each["status"]),
            show_seconds(each["seconds"]),
        )
        for each in view["times"]
    ]
    times: list[Block] = (
        [("", Table(rows, ("attempt", "began", "status", "time"), frozenset({3})))] if rows else []
    )
    heading = f"The end of {cell(view['log_path'], 300)}" if view["log"] else "It has no log"
    return [*times, (heading, view["log"])]


def rank_lines(view: dict[str, Any]) -> list[str]:
    """The rank's view in words, without its log."""
    step, epoch = mapping(view["step"]), mapping(view["epoch"])
    words = [f"run {cell(view['run_id'], 64)}, rank {view['rank']}, {view['status']}"]
    words.append(show_step(step) if step else "no step recorded yet")
    if number(epoch.get("epoch")) is not None:
        train, validation = mapping(epoch.get("train")), mapping(epoch.get("validation"))
        words.append(
            f"epoch {show_count(epoch['epoch'])}: training loss {show_decimal(train.get('loss'))}, "
            f"validation accuracy {show_percent(validation.get('accuracy'))} (this rank's share)"
        )
    return words


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    cause = ", ".join(
        part
        for part in (
            cell(found["cause"]) if found["cause"] else "",
            f"rank {found['rank']}" if found["rank"] is not None else "",
        )
        if part
    )
    ranks = show_count(found["world_size"])
    what = f"{cell(found['model'])} on {cell(found['dataset'])}, {cell(found['strategy'])}, ranks: {ranks}"
    code, machine, packages = found["code"], found["machine"], found["packages"]
    parent = mapping(found["parent"])
    training = found["training"]
    speed = f"{show_count(training.get('samples_per_second'))} samples/s"
    facts = [
        ("run", cell(found["run_id"], 64) + (f"  (tag {cell(found['tag'])})" if found["tag"] else "")),
        ("status", cell(found["status"]) + (f": {cause}" if cause else "")),
        ("what", what),
        ("created", show_moment(moment(found["created"]))),
        ("duration", f"{show_seconds(found['seconds'])}, attempts: {len(found['attempts'])}"),
        ("training", f"{show_seconds(training.get('seconds'))}, {speed}" if training else ""),
        ("parent", f"{cell(parent.get('run_id'), 64)}, {cell(parent.get('checkpoint'))}" if parent else ""),
        ("code", _code(code) if any(code.values()) else ""),
        ("machine", _machine(machine, packages) if machine else ""),
        ("command", _command(found["argv"])),
    ]
    return [fact for fact in facts if fact[1]]


def _code(code: dict[str, Any]) -> str:
    if code.get("absent"):
        return f"not under git ({cell(code['absent'], 100)})"
    changed = {True: ", with changes that were not committed", False: ", nothing changed"}
    dirty = code.get("dirty")
    commit = cell(code["commit"])[:12] if code.get("commit") else "no commit"
    return f"{commit} on {cell(code.get('branch'))}" + (changed[dirty] if isinstance(dirty, bool) else "")


def _machine(machine: dict[str, Any], packages: dict[str, Any]) -> str:
    return (
        f"{cell(machine.get('host'))}, {cell(machine.get('processor'))}, "
        f"{show_count(machine.get('cores'))} cores, {show_bytes(machine.get('memory_bytes'))}, "
        f"torch {cell(packages.get('torch'))}, "
        f"python {cell(packages.get('python'))}"
    )


def _command(argv: object) -> str:
    words = [word for word in argv if isinstance(word, str)] if isinstance(argv, list) else []
    return cell(shlex.join(words), 300) if words else ""


def _steps(found: dict[str, Any]) -> Table:
    several = len(found["attempts"]) > 1
    rows = [
        (
            *([str(step["attempt"])] if several else []),
            cell(step["step"]),
            cell(step["status"]),
            show_seconds(step["seconds"]),
        )
        for step in found["steps"][-50:]
    ]
    headings = (*(["attempt"] if several else []), "step", "status", "time")
    return Table(rows, headings, frozenset({len(headings) - 1}))


def _evaluation(evaluation: dict[str, Any]) -> Table:
    rows = []
    for which, found in evaluation.items():
        for split in ("train", "validation", "test"):
            figures = mapping(found.get(split))
            if figures:
                where = f"{which} (step {show_count(found.get('step'))})"
                accuracy, loss = show_percent(figures.get("accuracy")), show_decimal(figures.get("loss"))
                rows.append((where, split, accuracy, loss, show_count(figures.get("samples"))))
    return Table(rows, ("model", "split", "accuracy", "loss", "samples"), frozenset({2, 3, 4}))


def _ranks(ranks: list[dict[str, Any]]) -> Table:
    rows = [
        (
            show_count(rank.get("rank")),
            show_count(rank.get("samples")),
            show_count(rank.get("samples_per_second")),
            show_count(rank.get("steps")),
            *(show_seconds(rank.get(f"{part}_seconds")) for part in ("step", "compute", "sync", "data")),
            show_percent(rank.get("waiting_share")),
            show_seconds(rank.get("cpu_seconds")),
            show_bytes(rank.get("peak_rss_bytes")),
        )
        for rank in ranks[:64]
    ]
    return Table(rows, RANK_HEADINGS, frozenset(range(len(RANK_HEADINGS))))
