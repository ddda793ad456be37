"""Small sealed runs with parents, for the commands that follow lineage; nothing is trained."""

import json
import os
from unittest import mock

import sample_run
from lockstep.catalog import events
from lockstep.catalog.manifest import write_manifest
from lockstep.catalog.run import Run
from lockstep.catalog.seal import seal
from lockstep.files import sha256_of


def safetensors(seed, size=4000):
    draw = bytes((seed * 31 + index * index) % 251 for index in range(2 * size))
    entries = {
        "first.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
        "second.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [size, 2 * size]},
    }
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + draw


def make(catalog, run_id, seed=1, parent=None, sealed=True, steps=(10, 20), tag=None):
    """A run with two checkpoints; a child begins with its parent's last."""
    with mock.patch("os.fsync"):  # it need not survive a power cut
        return _make(catalog, run_id, seed, parent, sealed, steps, tag)


def _make(catalog, run_id, seed, parent, sealed, steps, tag):
    run = Run((catalog / run_id).resolve())
    for folder in (run.logs, run.data, run.metrics):
        folder.mkdir(parents=True)
    origin = None
    if parent is not None:
        last = max(parent.checkpoints.glob("step-*"))
        run.start.mkdir()
        for file in last.iterdir():
            os.link(file, run.start / file.name)
        digest = sha256_of(last / "manifest.json")
        origin = {
            "run_id": parent.run_id,
            "checkpoint": last.name,
            "manifest_sha256": digest,
            "kind": "resumed",
        }
    summary = {"dataset": "digits", "model": "mlp", "strategy": "ddp", "world_size": 2}
    events.append(
        run, "created", run_id=run_id, tag=tag or f"tag of {run_id}", parent=origin, summary=summary
    )
    for step in steps:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(safetensors(seed + step))
        (folder / "state.json").write_text(json.dumps({"step": step, "seed": seed}))
        write_manifest(folder)
    (run.data / "data.json").write_text(json.dumps({"identity": "d" * 64, "files": {}}))
    (run.data / "train.safetensors").write_bytes(safetensors(0))
    run.model.write_bytes(f"weights of {run_id}".encode() * 100)
    sample_run.dump(run.results, {"run_id": run_id, "training": {"steps": steps[-1]}})
    sample_run.dump(run.provenance, sample_run.provenance() | {"run_id": run_id, "parent": origin})
    run.patch.write_text("the changes")
    if sealed:
        events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
        seal(run)
    return run
