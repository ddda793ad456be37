"""Writes the step lines of a run that never ran, for tests of what reads them."""

import json
import math
import random
from typing import Any

from lockstep.catalog.run import Run


def write(
    run: Run,
    *,
    steps: int,
    first: int = 1,
    attempt: int = 1,
    straggler: int | None = None,
    loss: float | None = None,
    spikes: dict[int, float] | None = None,
    epochs_of: int = 0,
) -> list[list[dict[str, Any]]]:
    """A file for each rank that the run has; returns the step lines by rank. Epochs of so many steps, or none."""
    ranks = len(list(run.metrics.glob("rank-?.jsonl"))) or 2
    draw = random.Random(7)
    lines: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
    for step in range(first, steps + 1):
        own = [0.004 + draw.uniform(0, 0.001) + 0.003 * (rank == straggler) for rank in range(ranks)]
        end = max(own) + 0.0005
        for rank in range(ranks):
            usual = 2 * math.exp(-step / 80) + draw.uniform(0.01, 0.1)
            lines[rank].append(
                {
                    "kind": "step",
                    "step": step,
                    "epoch": 1 + (step - 1) // 11,
                    "loss": (spikes or {}).get(step, usual if loss is None else loss + step),
                    "correct": 5,
                    "samples": 64,
                    "learning_rate": 0.001,
                    "grad_norm": 1 + draw.uniform(0, 0.3),
                    "step_seconds": end,
                    "compute_seconds": own[rank] * 0.9,
                    "sync_seconds": end - own[rank],
                    "data_seconds": own[rank] * 0.08,
                    "cpu_seconds": 0.004,
                    "wire_bytes": 1000,
                }
            )
    for rank in range(ranks):
        start = {"kind": "start", "attempt": attempt, "rank": rank, "pid": 1, "step": first - 1}
        told = [start]
        for line in lines[rank]:
            told.append(line)
            if epochs_of and line["step"] % epochs_of == 0:
                told.append(epoch(line["step"] // epochs_of, line["step"], rank))
        run.metrics_file(rank, attempt).write_text("".join(json.dumps(line) + "\n" for line in told))
    return lines


def epoch(number: int, step: int, rank: int) -> dict[str, Any]:
    shares = {"loss": 1 / number + rank, "accuracy": 0.5 + 0.1 * rank, "samples": 100}
    return {
        "kind": "epoch",
        "epoch": number,
        "step": step,
        "seconds": 0.1,
        "train": shares,
        "validation": shares,
    }
