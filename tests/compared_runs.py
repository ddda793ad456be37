"""Folders of runs that never ran, whose metrics tell of a small training, for tests of what compares runs."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.catalog.seal import write_manifest
from lockstep.files import write_json

TENSORS = ("layers.0.weight", "layers.0.bias", "layers.1.weight")
PARAMETERS = """\
seed: {seed}
data: {{name: synthetic, num_samples: 100}}
model: {{name: mlp, hidden_sizes: [8]}}
training: {{epochs: 2, learning_rate: {learning_rate}, precision: fp32, digest_every: {every}}}
distributed: {{world_size: {ranks}, strategy: {{name: ddp}}}}
"""
Edit = Callable[[int, dict[str, Any]], None]


def lines(
    rank: int,
    first: int = 1,
    last: int = 20,
    every: int = 5,
    ranks: int = 2,
    epoch: int = 10,
    samples: int = 12,
) -> list[dict[str, Any]]:
    """What a rank writes of steps ``first`` to ``last``; of the same step always the same.

    Losses, and sums of samples, are such that those of all ranks together do not depend on their number.
    """
    found: list[dict[str, Any]] = [
        {
            "kind": "start",
            "attempt": 1,
            "rank": rank,
            "step": first - 1,
            "parameter_digests": prints(first - 1),
        }
    ]
    for step in range(first, last + 1):
        line = {
            "kind": "step",
            "step": step,
            "loss": 2.0 / step,
            "correct": step % 7,
            "samples": samples // ranks,
            "learning_rate": 0.01,
            "grad_norm": 1.0 / (step + 1),
        }
        if step % every == 0:
            line |= {
                "batch_digest": 1200 * step // ranks,
                "gradient_digests": prints(step, "gradient"),
                "parameter_digests": prints(step),
                "replicated": True,
            }
        found.append(line)
        if step % epoch == 0:
            share = {"loss": 1.0 / step, "accuracy": 0.5, "samples": 6 // ranks}
            found.append(
                {"kind": "epoch", "step": step, "epoch": step // epoch, "train": share, "validation": share}
            )
    return found


def prints(step: int, what: str = "parameter") -> dict[str, int]:
    draw = random.Random(f"{what} {step}")
    return {name: draw.randrange(-(2**63), 2**63) for name in TENSORS}


def write(path: Path, values: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def build(
    catalog: Path,
    name: str,
    *,
    ranks: int = 2,
    every: int = 5,
    first: int = 1,
    last: int = 20,
    parent: dict[str, Any] | None = None,
    edit: Edit | None = None,
    seed: int = 42,
    learning_rate: float = 0.01,
    provenance: dict[str, Any] | None = None,
    imports: dict[str, Any] | None = None,
) -> Run:
    """A run's folder. ``edit`` may change each line of each rank before it is written."""
    run = Run((catalog / name).resolve())
    for folder in (run.metrics, run.checkpoints, run.data, run.logs):
        folder.mkdir(parents=True)
    events.append(run, "created", run_id=name, tag=None, parent=parent, summary={})
    run.parameters.write_text(
        PARAMETERS.format(seed=seed, learning_rate=learning_rate, every=every, ranks=ranks)
    )
    write_json(run.plan, {"world_size": ranks, "threads_per_rank": 1, "steps_per_epoch": 10})
    write_json(run.data / "data.json", {"identity": "i", "files": {"train": {"sha256": "a" * 64}}})
    write_json(run.provenance, provenance or recorded())
    write_json(run.path / "imports.json", imports or imported())
    for rank in range(ranks):
        values = lines(rank, first, last, every, ranks)
        for value in values:
            if edit is not None:
                edit(rank, value)
        write(run.metrics_file(rank), values)
    return run


def recorded(**changes: Any) -> dict[str, Any]:
    """provenance.json of a run on known code, packages and machine."""
    return {
        "argv": ["pipeline.py"],
        "git": {"commit": "a" * 40, "dirty": False, "patch": None, "tree": "b" * 40, "left_out_count": 0},
        "packages": {"python": "3.12.7", "torch": "2.13.0", "numpy": "2.1.0"},
        "machine": {"host": "bench-1", "processor": "some processor", "processor_features": ["avx2"]},
        "environment": {},
        "distributions": {name: installed(version) for name, version in PACKAGES.items()},
    } | changes


PACKAGES = {"torch": "2.13.0", "numpy": "2.1.0", "helper-pkg": "1.0", "unused": "1.0"}


def installed(version: str, sha256: str = "c" * 64, module: str | None = None) -> dict[str, Any]:
    """What is recorded of an installed package."""
    return {"version": version, "sha256": sha256, "modules": [module or "helper_pkg"]}


def imported(digest: str = "d" * 64, *, complete: bool = True) -> dict[str, Any]:
    """imports.json of a run whose model stands in nets.py."""
    return {
        "format": 1,
        "ranks": 2,
        "complete": complete,
        "modules": {"nets": {"file": "/project/nets.py", "sha256": digest}},
        "packages": ["helper_pkg"],
        "other": [],
    }


def checkpoint(run: Run, step: int, tensors: dict[str, np.ndarray]) -> None:
    """A checkpoint with these weights and an optimizer's state of its own."""
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    save_file({"step": np.array(float(step))}, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))
    write_manifest(folder)
