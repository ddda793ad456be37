"""What show.py gathered, put into words and tables."""

import shlex
from collections.abc import Callable
from typing import Any

from lockstep.catalog import timeline_text
from lockstep.catalog.report.values import (
    mapping,
    moment,
    number,
    objects,
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
LAST_HEADINGS = (
    *("rank", "step", "epoch", "loss", "samples/s", "last step", "computing", "waiting", "data", ""),
)
RANKS_DROPPABLE = ("processor", "data", "computing", "steps", "step time", "samples", "memory", "waiting")
LAST_DROPPABLE = ("data", "computing", "waiting", "", "epoch", "last step", "samples/s")
MOST_RELATIVES = 20


def blocks(found: dict[str, Any]) -> list[Block]:
    """The overview as headings with tables and lines below them; what the run does not have is left out."""
    log, related = found["log"] or {"path": "", "lines": []}, found["lineage"]
    parts: list[tuple[str, object, Callable[[], Table | list[str]]]] = [
        ("Message", found["message"], lambda: lines_of(found["message"])),
        ("Warnings", found["warnings"], lambda: [cell(each, 300) for each in found["warnings"][:10]]),
        ("Damaged", found["gaps"], lambda: [cell(gap, 300) for gap in found["gaps"]]),
        ("Pipeline", found["steps"], lambda: timeline_text.table(found)),
        ("Results", found["evaluation"], lambda: _evaluation(found["evaluation"])),
        ("Ranks", found["ranks"], lambda: _ranks(found["ranks"])),
        ("Ranks, as far as they came", found["ranks_last"], lambda: _ranks_last(found["ranks_last"])),
        ("Lineage", related["ancestors"] or related["children"], lambda: lineage_lines(related)),
        (f"The end of {cell(log['path'], 200)}", log["lines"], lambda: log["lines"]),
        ("Files", found["files"], lambda: Table([(k, cell(v, 300)) for k, v in found["files"].items()])),
    ]
    return [("", Table(_facts(found))), *((heading, make()) for heading, there, make in parts if there)]


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
    training = found["training"]
    speed = f"{show_count(training.get('samples_per_second'))} samples/s"
    facts = [
        ("run", cell(found["run_id"], 64) + (f"  (tag {cell(found['tag'])})" if found["tag"] else "")),
        ("status", cell(found["status"]) + (f": {cause}" if cause else "")),
        ("what", what),
        ("created", show_moment(moment(found["created"]))),
        ("duration", f"{show_seconds(found['seconds'])}, attempts: {len(found['attempts'])}"),
        ("training", f"{show_seconds(training.get('seconds'))}, {speed}" if training else ""),
        ("code", _code(code) if any(code.values()) else ""),
        ("data", _data(found["data"]) if found["data"] else ""),
        ("machine", _machine(machine, packages) if machine else ""),
        ("command", _command(found["argv"])),
        ("seal", _seal(found)),
    ]
    return [fact for fact in facts if fact[1]]


def _code(code: dict[str, Any]) -> str:
    if code.get("absent"):
        return f"not under git ({cell(code['absent'], 100)})"
    dirty, patch = code.get("dirty"), mapping(code.get("patch"))
    changed = {True: ", with changes that were not committed", False: ", nothing changed"}
    commit = cell(code["commit"])[:12] if code.get("commit") else "no commit"
    kept = f" ({cell(patch.get('file'))}, {show_bytes(patch.get('bytes'))})" if patch else ""
    words = changed[dirty] if isinstance(dirty, bool) else ", and what had changed is not known"
    return f"{commit} on {cell(code.get('branch'))}{words}{kept}{_not_kept(code)}"


def _not_kept(code: dict[str, Any]) -> str:
    """What the record of the code does not hold."""
    count, named = number(code.get("left_out_count")), objects(code.get("left_out"))
    if code.get("patch_absent"):
        return f"; no patch: {cell(code['patch_absent'], 100)}"
    if code.get("untracked_absent"):
        return f"; untracked files not recorded: {cell(code['untracked_absent'], 100)}"
    if not count:
        return ""
    names = ", ".join(f"{cell(each.get('path'), 60)} ({cell(each.get('reason'), 40)})" for each in named[:3])
    more = f" and {show_count(count - 3)} more" if count > 3 else ""
    return f"; {show_count(count)} not in the patch: {names}{more}"


def _data(data: dict[str, Any]) -> str:
    counts = [f"{show_count(count)} {cell(name, 16)}" for name, count in list(data["samples"].items())[:5]]
    made = data["made_from"]
    return (
        f"{cell(made.get('dataset'))}, identity {cell(data['identity'])[:12]}, samples: {', '.join(counts)}"
    )


def _seal(found: dict[str, Any]) -> str:
    sealed = found["sealed"]
    if sealed:
        return f"{show_moment(moment(sealed['time']))}, manifest {cell(sealed['manifest_sha256'])[:12]}"
    return "" if found["status"] == "running" else "none: this record was not completed"


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


def _ranks_last(ranks: list[dict[str, Any]]) -> Table:
    rows = []
    for found in ranks:
        step, end = mapping(found["step"]), mapping(found["end"])
        seconds, samples = number(step.get("step_seconds")), number(step.get("samples"))
        parts = [show_seconds(step.get(f"{part}_seconds")) for part in ("step", "compute", "sync", "data")]
        rows.append(
            (
                str(found["rank"]),
                show_count(step.get("step")),
                show_count(step.get("epoch")),
                show_decimal(step.get("loss")),
                show_count(samples / seconds if samples is not None and seconds else None),
                *parts,
                "ended" if end else "",
            )
        )
    droppable = [*map(LAST_HEADINGS.index, LAST_DROPPABLE)]
    return Table(rows, LAST_HEADINGS, frozenset(range(len(LAST_HEADINGS) - 1)), droppable)


def lineage_lines(lineage: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Ancestors, each indented below the younger, then children."""
    lines = []
    for depth, each in enumerate(lineage["ancestors"][:MOST_RELATIVES]):
        lines.append("  " * depth + f"{cell(each['kind'], 16)} from {_relative(each)}")
    for each in lineage["children"][:MOST_RELATIVES]:
        lines.append(f"child: {_relative(each)}, {cell(each['kind'], 16)} from this")
    hidden = sum(max(0, len(each) - MOST_RELATIVES) for each in lineage.values())
    return [*lines, f"and {hidden} more"] if hidden else lines


def _relative(each: dict[str, Any]) -> str:
    where = cell(each["checkpoint"]) if each["checkpoint"] else "no checkpoint: from the beginning"
    told = {
        "absent": "not in this catalog",
        "collected": "collected: its tombstone is left",
    }.get(each["status"], cell(each["status"]))
    return f"{cell(each['run_id'], 64)} ({told}), {where}"


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
    droppable = [*map(RANK_HEADINGS.index, RANKS_DROPPABLE)]
    return Table(rows, RANK_HEADINGS, frozenset(range(len(RANK_HEADINGS))), droppable)
