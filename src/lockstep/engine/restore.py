"""Taking up a run where it was left, and handing the finished model to the ecosystem."""

import os
import sys

import torch

from lockstep.engine import checkpoint
from lockstep.engine.checkpoint import Checkpoint
from lockstep.engine.loop import Job
from lockstep.engine.optimizers import PRECISIONS
from lockstep.errors import RunFailed
from lockstep.files import fsync_folder, temporary_beside, write_json

PASSED_OVER = "passed-over.json"  # in the live folder: damaged checkpoints, for the pipeline to tell


def say(text: str) -> None:
    """A line for this rank's log."""
    sys.stdout.write(text + "\n")


def restore(job: Job) -> int:
    """Load the newest checkpoint that verifies, this run's own or its parent's; returns the updates done."""
    found, passed_over = checkpoint.newest(job.run.checkpoints)
    if passed_over and job.rank == 0:
        write_json(job.run.live / PASSED_OVER, passed_over)
    if found is not None:
        load(job, found)
        job.best = found.meta["best"]
        job.saved_step = found.step
        say(f"continuing from {found.path.name}")
        return found.step
    if not (job.run.start / "state.json").exists():
        return 0
    parent = checkpoint.open_verified(job.run.start)
    load(job, parent)
    say(f"starting from {parent.meta['made_by']['run_id']}, step {parent.step}")
    epochs, left_over = divmod(parent.step, int(parent.meta["steps_per_epoch"]))
    if parent.meta["steps_per_epoch"] == job.batches.steps_per_epoch:
        return parent.step
    assert not left_over, "the orchestration refuses this before a run is made"
    return epochs * job.batches.steps_per_epoch


def load(job: Job, found: Checkpoint) -> None:
    """Weights always; the optimizer's state where it is the same optimizer."""
    state = found.tensors()
    if found.meta["optimizer"]["name"] != job.parameters.training.optimizer.name:
        say(f"the checkpoint's optimizer was {found.meta['optimizer']['name']}: the new one starts afresh")
        state["optimizer"] = {}
    precision = PRECISIONS[job.parameters.training.precision]
    for part in state.values():
        for name, tensor in part.items():
            # Adam keeps its step count in fp32 whatever the weights are, so scalars stay as they are.
            if tensor.is_floating_point() and tensor.dim():
                part[name] = tensor.to(precision)
    try:
        job.strategy.load(state)
    except RuntimeError as error:
        raise RunFailed(f"the checkpoint {found.path.name} does not fit the model: {error}") from None


def export(job: Job, step: int) -> None:
    """distributed_model_checkpoint.pt: plain tensors and numbers, loads with weights_only=True."""
    state = job.strategy.state()
    with temporary_beside(job.run.model) as temporary:
        torch.save(
            {
                "model": state["model"],
                "optimizer": {
                    "name": job.parameters.training.optimizer.name,
                    "options": dict(job.parameters.training.optimizer.options),
                    "state": state["optimizer"],
                },
                "step": step,
                "parameters": job.parameters.to_value(),
            },
            temporary,
        )
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(job.run.model)
    fsync_folder(job.run.path)
