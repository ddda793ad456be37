"""The run that another goes on from, or repeats: its checkpoint, and what may follow on it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import full_disk
from lockstep.catalog.manifest import verify_folder
from lockstep.catalog.run import Run
from lockstep.errors import CorruptRecord, UsageError
from lockstep.files import fsync_folder, read_json, sha256_of
from lockstep.orchestration import plan
from lockstep.parameters import Parameters


@dataclass(frozen=True)
class Parent:
    """Another run, and the checkpoint of it that a new run starts from (None: it left none that is valid)."""

    run: Run
    checkpoint: Path | None
    kind: str = "resumed"  # or reproduced: a run that is to repeat the other from its beginning
    changes: Sequence[dict[str, Any]] = ()  # of code, data or packages since, as the user accepted them

    def as_dict(self) -> dict[str, Any]:
        """What the record of the child keeps."""
        plan_of_run = plan.read(self.run.plan) or {}
        return {
            "run_id": self.run.run_id,
            "kind": self.kind,
            "checkpoint": self.checkpoint.name if self.checkpoint else None,
            "manifest_sha256": sha256_of(self.checkpoint / "manifest.json") if self.checkpoint else None,
            "world_size": plan_of_run.get("world_size"),
            "threads_per_rank": plan_of_run.get("threads_per_rank"),
            "data_identity": (plan.read(self.run.data / "data.json") or {}).get("identity"),
            **({"changes": list(self.changes)} if self.changes else {}),
        }

    def in_words(self) -> str:
        """For the line that a run begins with."""
        if self.kind == "reproduced":
            return f"  repeating {self.run.shown}"
        if self.checkpoint is None:
            return f"  child of {self.run.shown}, which left no valid checkpoint: from the beginning"
        return f"  from {self.run.shown} {self.checkpoint.name}"


def newest_checkpoint(run: Run) -> tuple[Parent, list[str]]:
    """The newest checkpoint of a run that verifies, its own or the one it started from; what was passed over."""
    passed_over: list[str] = []
    for path in [*sorted(run.checkpoints.glob("step-*"), reverse=True), run.start]:
        if not path.is_dir():
            continue
        findings = verify_folder(path)
        if not findings:
            return Parent(run, path), passed_over
        passed_over.append(f"passed over: checkpoint {path.name} is damaged ({'; '.join(findings)})")
    return Parent(run, None), passed_over


def refuse_what_cannot_follow(run: Run, parent: Parent, before: Parameters, wanted: Parameters) -> None:
    """Refuse early, with nothing written, what setup_distributed would refuse later."""
    decided = plan.read(run.plan)
    if (
        parent.checkpoint is None
        or decided is None
        or before.data != wanted.data
        or before.seed != wanted.seed
    ):
        return
    samples = decided["splits"]["train"]
    steps_per_epoch = -(-samples // wanted.training.global_batch_size)
    state = read_json(parent.checkpoint / "state.json")
    complaint = plan.start_complaint(state, steps_per_epoch, steps_per_epoch * wanted.training.epochs)
    if complaint:
        raise UsageError(complaint)


def adopt(run: Run, parent: Parent) -> None:
    """Give the parent's checkpoint a name in the child, so that the child's folder is whole by itself."""
    if parent.checkpoint is None:
        return
    run.start.mkdir()
    for file in parent.checkpoint.iterdir():
        try:
            os.link(file, run.start / file.name)
        except OSError:
            with full_disk.needing(run.start / file.name, file.stat().st_size):
                shutil.copy2(file, run.start / file.name)
    fsync_folder(run.start)
    if verify_folder(run.start):
        raise CorruptRecord(f"{parent.checkpoint} changed while it was copied")
