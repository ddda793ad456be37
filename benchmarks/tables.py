"""The medians of a comparison, and the tables that a person reads."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from timeline import PHASES

KINDS = ("bare", "ours", "allreduce", "digits")
Rounds = Sequence[dict[str, Any]]
FIGURES = (
    ("samples/s, loop with all that is in it", "in_loop_samples_per_second", ",.0f"),
    ("samples/s, inside the steps", "in_step_samples_per_second", ",.0f"),
    ("samples/s, as recorded", "recorded_samples_per_second", ",.0f"),
    ("processor ms of a step and rank", "step_cpu_ms", ".3f"),
    ("seconds to the first step", "first_step_seconds", ".2f"),
    ("seconds, whole command", "seconds", ".2f"),
    ("start-up share", "startup_share", ".0%"),
    ("processor seconds", "core_seconds", ".1f"),
    ("accuracy on test", "accuracy", ".4f"),
    ("load average at the start", "load", ".2f"),
    ("cores that others kept busy", "busy_cores", ".2f"),
)
GOALS: tuple[tuple[str, str, str, str, Callable[[dict[str, float]], bool]], ...] = (
    ("samples/s as recorded, ours / bare", "recorded_ratio", ".3f", ">= 0.95", lambda v: v["median"] >= 0.95),
    ("samples/s of the loop, ours / bare", "in_loop_ratio", ".3f", ">= 0.95", lambda v: v["median"] >= 0.95),
    ("samples/s, allreduce on shm / bare (goal 1.4 at 2 ranks, 2 at 4)", "allreduce_ratio", ".2f", "", bool),
    ("processor time of a step, ours / bare", "step_cpu_ratio", ".3f", "", bool),
    ("whole command, ours - bare, seconds", "more_seconds", "+.2f", "<= +2", lambda v: v["median"] <= 2),
    ("digits, whole command, seconds", "digits_seconds", ".2f", "<= 10", lambda v: v["median"] <= 10),
    ("digits, accuracy on test", "digits_accuracy", ".4f", ">= 0.96", lambda v: v["least"] >= 0.96),
)


def over(rounds: Rounds, function: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """Median, least and most of a figure."""
    values = [function(each) for each in rounds]
    return {"median": median(values), "least": min(values), "most": max(values)}


def summary(rounds: Rounds) -> dict[str, Any]:
    """Medians over the rounds; ratios and differences are taken within each round first."""

    def figures(name: str) -> dict[str, Any]:
        numbers = [key for key, value in rounds[0][name].items() if isinstance(value, float)]
        return {key: over(rounds, partial(_figure, name, key)) for key in numbers}

    def ratio(key: str, of: str) -> dict[str, float]:
        return over(rounds, lambda each: each["ours"][key] / each["bare"][of])

    rate = "in_loop_samples_per_second"
    kinds = ("ours", "allreduce", "digits")
    return {
        **{name: figures(name) for name in ("bare", *kinds)},
        "recorded_ratio": ratio("recorded_samples_per_second", rate),
        "in_loop_ratio": ratio(rate, rate),
        "allreduce_ratio": over(rounds, lambda each: each["allreduce"][rate] / each["bare"][rate]),
        "step_cpu_ratio": ratio("step_cpu_ms", "step_cpu_ms"),
        "more_seconds": over(rounds, lambda each: each["ours"]["seconds"] - each["bare"]["seconds"]),
        "digits_seconds": over(rounds, lambda each: each["digits"]["seconds"]),
        "digits_accuracy": over(rounds, lambda each: each["digits"]["accuracy"]),
        "phases": {
            name: {kind: median(each[kind]["phases"][name] for each in rounds) for kind in kinds}
            for name in PHASES
        },
    }


def _figure(name: str, key: str, each: dict[str, Any]) -> float:
    return float(each[name][key])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def show(found: dict[str, Any], options: argparse.Namespace) -> str:
    """What was measured, the goals, and where the time went."""
    head = (
        f"{options.world_size} ranks, {options.epochs} epochs, {options.rounds} rounds on "
        f"{len(os.sched_getaffinity(0))} cores: medians. The bare loop's Adam is "
        f"{'fused, as ours is' if options.fused else 'the default one, ours is fused'}."
    )
    figures = [["", *KINDS]]
    for title, key, form in FIGURES:
        cells = (found[name].get(key) for name in KINDS)
        figures.append([title, *("-" if cell is None else format(cell["median"], form) for cell in cells)])
    goals = [["", "median", "spread", "goal", ""]]
    for title, key, form, goal, reached in GOALS:
        value = found[key]
        spread = f"{value['least']:{form}} to {value['most']:{form}}"
        word = ("reached" if reached(value) else "MISSED") if goal else ""
        goals.append([title, f"{value['median']:{form}}", spread, goal, word])
    return "\n\n".join([head, table(figures), table(goals), table(_phases(found))])


def _phases(found: dict[str, Any]) -> list[list[str]]:
    rows = [["where the time goes, seconds", "ours", "", "allreduce", "", "digits", ""]]
    for name, part in found["phases"].items():
        cells = []
        for kind in KINDS[1:]:
            whole = found[kind]["seconds"]["median"]
            cells += [f"{part[kind]:.2f}", f"{part[kind] / whole:.0%}"]
        rows.append([name, *cells])
    return rows
