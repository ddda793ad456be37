"""Complete, sealed runs for the tests of export, and what a run of the command says."""

import json
from datetime import timedelta
from pathlib import Path

import sample_run
from lockstep.catalog import events, seal
from lockstep.catalog.manifest import write_manifest
from lockstep.catalog.run import Run

COMMIT = "8661eb7f0c1f4f0e9a6d6d8e1b2c3d4e5f60718a"
IDENTITY = "c1da7b0945587d5d4f13692622217fa6122e97fe3c4f6da76048e6a0c6c6ee62"
FINISHED = {"status": "succeeded", "cause": None, "message": None, "rank": None}


def build(
    catalog: Path, run_id="20261120-115146-3f9a2c", *, parent=None, epochs=3, ending=FINISHED, sealed=True
):
    """A run with everything in it, which ended as told."""
    run = sample_run.build(catalog, epochs=epochs)
    if run_id != run.run_id:
        run = Run(run.path.rename(catalog / run_id))
    lines = [json.loads(line) for line in run.events.read_text().splitlines()]
    lines[0] |= {"run_id": run_id, "parent": parent}
    run.events.unlink()
    for line in lines:
        fields = {key: value for key, value in line.items() if key not in ("event", "time", "previous")}
        events.append(run, line["event"], time=line["time"], **fields)
    run.data.mkdir()
    told = {"files": {}, "identity": IDENTITY, "made_from": {"dataset": "digits", "seed": 42}}
    for split, samples in sample_run.SAMPLES.items():
        (run.data / f"{split}.safetensors").write_bytes(split.encode() * 10)
        told["files"][split] = {"samples": samples, "sha256": "ab" * 32, "bytes": 10 * len(split)}
    sample_run.dump(run.data / "data.json", told)
    (run.path / "uv.lock").write_text("version = 1\n")
    (run.path / "source.patch").write_text("--- a\n+++ b\n")
    run.model.write_bytes(b"the model")
    for folder in run.checkpoints.iterdir():
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            (folder / name).write_text(f"{folder.name} {name}")
        write_manifest(folder)
    for rank in range(2):
        metrics(run, rank, 1, 11 * epochs)
    if ending:
        last = sample_run.BEGAN + timedelta(seconds=10)
        events.append(run, "finished", time=f"{last:%Y-%m-%dT%H:%M:%S.%fZ}", **ending)
        if sealed:
            seal.seal(run)
    return run


def metrics(run: Run, rank: int, first: int, last: int, attempt: int = 1) -> None:
    """Lines of steps whose losses differ by rank, and of an epoch every 11 steps."""
    start = {"kind": "start", "attempt": attempt, "rank": rank, "pid": 1, "step": first - 1}
    lines = [start]
    for step in range(first, last + 1):
        times = {"step_seconds": 0.01, "compute_seconds": 0.006, "sync_seconds": 0.003, "data_seconds": 0.0}
        rest = {
            "learning_rate": 0.001,
            "grad_norm": 0.5,
            "epoch": 1 + (step - 1) // 11,
            "samples": 64 - 32 * rank,
        }
        lines.append({"kind": "step", "step": step, "loss": 1 / step + rank, **rest, **times})
        if step % 11 == 0:
            share = {"loss": 0.5 + rank, "accuracy": 0.9, "samples": 10 * (rank + 1)}
            lines.append(
                {"kind": "epoch", "epoch": step // 11, "step": step, "train": share, "validation": share}
            )
    run.metrics_file(rank, attempt).write_text("".join(json.dumps(line) + "\n" for line in lines))
