"""Builds the folder of a run that never ran, with plausible figures, for tests of what reads such folders."""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lockstep.catalog.run import Run

BEGAN = datetime(2026, 11, 20, 11, 51, 46, 123456, tzinfo=UTC)
SAMPLES = {"train": 1294, "validation": 143, "test": 360}
PARAMETERS = """\
seed: 42
data:
  name: digits
  validation_fraction: 0.1
  test_fraction: 0.2
model:
  name: mlp
  hidden_sizes: [256, 256]
  dropout: 0.0
training:
  epochs: {epochs}
  global_batch_size: 128
  optimizer: adam
  learning_rate: 0.001
  precision: fp32
distributed:
  world_size: {ranks}
  strategy: ddp
  launcher: spawn
  backend: gloo
checkpoint:
  every_epochs: 1
  keep: 3
"""


def build(
    catalog: Path, *, epochs: int = 30, ranks: int = 2, classes: int = 10, validation: bool = True
) -> Run:
    """The folder of a run whose report step is just beginning: what the report meets in real life."""
    run = Run((catalog / "20261120-115146-3f9a2c").resolve())
    for folder in (run.logs, run.metrics, run.checkpoints / f"step-{11 * epochs:08d}"):
        folder.mkdir(parents=True)
    run.parameters.write_text(PARAMETERS.format(epochs=epochs, ranks=ranks))
    dump(run.results, results(run.run_id, epochs, ranks, classes, validation))
    dump(run.provenance, provenance())
    dump(run.plan, plan(ranks, epochs))
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events(run.run_id, ranks)))
    run.model.write_bytes(b"")
    for rank in range(ranks):
        run.metrics_file(rank).write_text("")
        run.rank_log(rank).write_text("")
    return run


def dump(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))


def results(run_id: str, epochs: int, ranks: int, classes: int, validation: bool) -> dict[str, Any]:
    draw = random.Random(7)
    rows = [_epoch(number, draw, validation) for number in range(1, epochs + 1)]
    last = rows[-1]
    confusion = _confusion(classes, draw)
    right, samples = sum(confusion[i][i] for i in range(classes)), sum(map(sum, confusion))
    final = {
        "step": last["step"],
        "epoch": epochs,
        "train": last["train"],
        "validation": last["validation"],
        "test": {
            "loss": 0.0874,
            "accuracy": right / samples,
            "samples": samples,
            "confusion": confusion,
            "per_class": _per_class(confusion),
        },
    }
    best = max(1, epochs - 4)
    return {
        "run_id": run_id,
        "tag": "digits-baseline",
        "dataset": "digits",
        "model": "mlp",
        "strategy": "ddp" if ranks > 1 else "single",
        "world_size": ranks,
        "training": {
            "steps": 11 * epochs,
            "epochs": epochs,
            "samples": SAMPLES["train"] * epochs,
            "seconds": 0.064 * epochs,
            "startup_seconds": 3.412,
            "samples_per_second": 20218.7,
            "waiting_share": 0.183 if ranks > 1 else 0.0,
            "attempts": 1,
        },
        "epochs": rows,
        "ranks": [_rank(rank, ranks, epochs) for rank in range(ranks)],
        "evaluation": {
            "classes": [str(index) for index in range(classes)],
            "final": final,
            "best": {**final, "step": 11 * best, "epoch": best, "train": rows[best - 1]["train"]},
        },
    }


def _epoch(number: int, draw: random.Random, validation: bool) -> dict[str, Any]:
    loss = 2.1 * math.exp(-number / 3.2) + 0.012
    held = loss + 0.06 * (1 - math.exp(-number / 4)) + draw.uniform(-0.012, 0.012)
    return {
        "epoch": number,
        "step": 11 * number,
        "seconds": 0.061 + draw.uniform(0, 0.004),
        "learning_rate": 0.001,
        "train": {"loss": loss, "accuracy": 1 - 0.42 * math.exp(-number / 2.6), "samples": SAMPLES["train"]},
        "validation": {"loss": held, "accuracy": 0.979 - 0.45 * math.exp(-number / 2.4), "samples": 143}
        if validation
        else None,
    }


def _confusion(classes: int, draw: random.Random) -> list[list[int]]:
    rows = [[0] * classes for _ in range(classes)]
    for true in range(classes):
        rows[true][true] = 36 - true % 3
        for _ in range(draw.choice((0, 0, 1, 1, 2, 3))):
            rows[true][draw.randrange(classes)] += 1
    return rows


def _per_class(confusion: list[list[int]]) -> list[dict[str, Any]]:
    entries = []
    for index, row in enumerate(confusion):
        predicted = sum(other[index] for other in confusion)
        entries.append(
            {
                "class": str(index),
                "precision": row[index] / predicted if predicted else None,
                "recall": row[index] / sum(row) if sum(row) else None,
                "support": sum(row),
            }
        )
    return entries


def _rank(rank: int, ranks: int, epochs: int) -> dict[str, Any]:
    total = 0.0585 * epochs
    waiting = 0.0 if ranks == 1 else total * (0.14 + 0.07 * ((rank * 3) % 4) / 3)
    return {
        "rank": rank,
        "samples": SAMPLES["train"] * epochs // ranks,
        "steps": 11 * epochs,
        "samples_per_second": 20218.7 / ranks,
        "step_seconds": total,
        "compute_seconds": total * 0.91 - waiting,
        "sync_seconds": waiting,
        "data_seconds": total * 0.031,
        "waiting_share": waiting / total,
        "cpu_seconds": 5.81 + rank * 0.07,
        "peak_rss_bytes": 372_244_480 + rank * 1_048_576,
        "wire_bytes": 0 if ranks == 1 else 11 * epochs * 341_032,
        "startup_seconds": 3.41 + rank * 0.02,
    }


def provenance() -> dict[str, Any]:
    digest = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    return {
        "run_id": "20261120-115146-3f9a2c",
        "attempt": 1,
        "time": "2026-11-20T11:51:46.123456Z",
        "argv": ["pipeline.py", "training.epochs=30", "--tag", "digits baseline"],
        "cwd": "/home/ada/lockstep",
        "parent": None,
        "git": {
            "commit": "8661eb7f0c1f4f0e9a6d6d8e1b2c3d4e5f60718a",
            "branch": "main",
            "remote": "https://example.org/ada/lockstep.git",
            "dirty": True,
            "patch": {"file": "source.patch", "bytes": 1834, "sha256": digest},
        },
        "packages": {"python": "3.12.7", "lockstep": "0.1.0", "torch": "2.13.0", "scikit-learn": None},
        "uv_lock": {"bytes": 377273, "sha256": digest[::-1]},
        "machine": {
            "host": "bench-1",
            "kernel": "Linux 6.8.0",
            "processor": "Intel(R) Xeon(R) Gold 6338",
            "cores": 2,
            "memory_bytes": 8_318_001_152,
        },
        "environment": {"OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"},
    }


def plan(ranks: int, epochs: int) -> dict[str, Any]:
    return {
        "world_size": ranks,
        "threads_per_rank": 1,
        "strategy": {"name": "ddp"},
        "global_batch_size": 128,
        "steps_per_epoch": 11,
        "steps": 11 * epochs,
        "splits": SAMPLES,
        "warnings": [] if ranks <= 2 else [f"{ranks} ranks share 2 cores: expect each step to take longer."],
    }


def events(run_id: str, ranks: int) -> list[dict[str, Any]]:
    summary = {"dataset": "digits", "model": "mlp", "strategy": "ddp", "world_size": ranks}
    found: list[dict[str, Any]] = []
    clock = BEGAN

    def tell(event: str, **fields: object) -> None:
        time = clock.isoformat().replace("+00:00", "Z")
        found.append({"event": event, "time": time, "previous": "0" * 64, **fields})

    tell("created", run_id=run_id, tag="digits-baseline", parent=None, summary=summary, lockstep="0.1.0")
    tell("started", attempt=1, process={"pid": 4711, "host": "bench-1"})
    steps = {
        "prepare_data": 0.81,
        "setup_distributed": 0.02,
        "train": 5.67,
        "aggregate_metrics": 0.06,
        "evaluate": 0.44,
    }
    for step, seconds in steps.items():
        tell("step_started", step=step)
        clock += timedelta(seconds=seconds)
        tell("step_finished", step=step, status="succeeded", seconds=seconds)
    tell("step_started", step="report")
    return found
