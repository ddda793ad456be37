"""Taking up a run where it was left, and handing the finished model to the ecosystem."""

import contextlib
import os
import sys
from collections.abc import Iterator

import torch

from lockstep.catalog.run import Run
from lockstep.engine import caveats, checkpoint
from lockstep.engine.checkpoint import Checkpoint, State
from lockstep.engine.loop import Job
from lockstep.engine.optimizers import PRECISIONS
from lockstep.errors import RunFailed
from lockstep.files import fsync_folder, temporary_beside, write_json
from lockstep.parameters import Parameters

NOTES = "notes.json"  # in the live folder: what rank 0 has to say to the user, for the pipeline to tell


def say(text: str) -> None:
    """A line for this rank's log."""
    sys.stdout.write(text + "\n")


def starting_point(run: Run, steps_per_epoch: int) -> tuple[Checkpoint | None, int, list[str]]:
    """The newest checkpoint that verifies, this run's own or its parent's; the updates done; what was passed over."""
    found, passed_over = checkpoint.newest(run.checkpoints)
    if found is not None:
        return found, found.step, passed_over
    if not (run.start / "state.json").exists():
        return None, 0, passed_over
    parent = checkpoint.open_verified(run.start)
    epochs, left_over = divmod(parent.step, int(parent.meta["steps_per_epoch"]))
    if parent.meta["steps_per_epoch"] == steps_per_epoch:
        return parent, parent.step, passed_over
    assert not left_over, "the orchestration refuses this before a run is made"
    return parent, epochs * steps_per_epoch, passed_over


def restore(job: Job) -> int:
    """Load what ``starting_point`` finds; returns the updates done."""
    found, step, passed_over = starting_point(job.run, job.batches.steps_per_epoch)
    if job.rank == 0:
        write_json(job.run.live / NOTES, [*caveats.of(job.strategy), *passed_over])
    if found is None:
        return 0
    with fitting(found):
        job.strategy.load(state_of(found, job.parameters))
    job.strategy.passes.loss_scale.load(found.meta.get("loss_scale"))
    if found.path.parent == job.run.checkpoints:
        job.best = found.meta["best"]
        job.saved_step = found.step
        say(f"continuing from {found.path.name}")
    else:
        say(f"starting from {found.meta['made_by']['run_id']}, step {found.step}")
    return step


def state_of(found: Checkpoint, parameters: Parameters) -> State:
    """Weights always, in the run's precision; the optimizer's state where it is the same optimizer."""
    state = found.tensors()
    if found.meta["optimizer"]["name"] != parameters.training.optimizer.name:
        say(f"the checkpoint's optimizer was {found.meta['optimizer']['name']}: the new one starts afresh")
        state["optimizer"] = {}
    precision = PRECISIONS[parameters.training.precision]
    for part in state.values():
        for name, tensor in part.items():
            # Adam keeps its step count in fp32 whatever the weights are, so scalars stay as they are.
            if tensor.is_floating_point() and tensor.dim():
                part[name] = tensor.to(precision)
    return state


@contextlib.contextmanager
def fitting(found: Checkpoint) -> Iterator[None]:
    """Say in words that a checkpoint is of another model."""
    try:
        yield
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
