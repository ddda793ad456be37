"""Taking up a run where it was left, and handing the finished model to the ecosystem."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lockstep import full_disk
from lockstep.catalog.run import Run
from lockstep.engine import caveats, checkpoint
from lockstep.engine.checkpoint import WHOLE, Checkpoint, State
from lockstep.engine.contents import Contents
from lockstep.engine.job import Job
from lockstep.engine.log import say
from lockstep.engine.optimizers import learning_rate
from lockstep.engine.precision import PRECISIONS
from lockstep.errors import RunFailed
from lockstep.files import fsync, fsync_folder, read_json, set_mode, temporary_beside, write_json
from lockstep.parameters import Parameters

NOTES = "notes.json"  # in the live folder: what rank 0 has to say to the user, for the pipeline to tell


def warn(run: Run, *notes: str) -> None:
    """As rank 0: lines for its log that the pipeline tells the user as well."""
    path = run.live / NOTES
    write_json(path, [*(read_json(path) if path.exists() else []), *notes])
    for note in notes:
        say(note)


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
        warn(job.run, *job.strategy.notes, *caveats.of(job.strategy), *passed_over)
    if found is None:
        return 0
    with fitting(found), contextlib.closing(found.contents()) as contents:
        job.strategy.restore(Adapted(contents, found, job.parameters))
    if job.rank == 0 and (note := _another_rate(found, job, step)):
        warn(job.run, note)
    job.strategy.passes.loss_scale.load(found.meta.get("loss_scale"))
    if found.path.parent == job.run.checkpoints:
        job.best = found.meta["best"]
        job.saved_step = found.step
        say(f"continuing from {found.path.name}")
    else:
        say(f"starting from {found.meta['made_by']['run_id']}, step {found.step}")
    return step


def _another_rate(found: Checkpoint, job: Job, step: int) -> str | None:
    """A sentence where the schedule gives the last update that was done another rate than it was done with."""
    before = (found.meta.get("scheduler") or {}).get("learning_rate")
    training = job.parameters.training
    if not isinstance(before, int | float) or not step or step >= job.steps:
        return None
    if math.isclose(learning_rate(training, step, job.steps), before, rel_tol=1e-9, abs_tol=1e-15):
        return None
    return (
        f"the learning rate was {before:.3g} at step {step} and goes on with "
        f"{learning_rate(training, step + 1, job.steps):.3g}: training.schedule {training.schedule.name} now ends at "
        f"step {job.steps}, and gives each step another rate than the one before did"
    )


def state_of(found: Checkpoint, parameters: Parameters) -> State:
    """All of it, as ``Adapted`` has it."""
    with contextlib.closing(found.contents()) as contents:
        return Adapted(contents, found, parameters).whole()


class Adapted:
    """A checkpoint as a run takes it up: weights always, in the run's precision; the optimizer's state if it is the
    same optimizer."""

    def __init__(self, contents: Contents, found: Checkpoint, parameters: Parameters) -> None:
        self._contents = contents
        self._precision = PRECISIONS[parameters.training.precision]
        saved = found.meta["optimizer"]["name"]
        self._left_out = set() if saved == parameters.training.optimizer.name else {"optimizer"}
        if self._left_out:
            say(f"the checkpoint's optimizer was {saved}: the new one starts afresh")

    def names(self, part: str) -> list[str]:
        """The tensors of a part; none where it is missing, or left out."""
        return [] if part in self._left_out else self._contents.names(part)

    def shape(self, part: str, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return self._contents.shape(part, name)

    def read(
        self, part: str, name: str, offsets: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> Tensor:
        """A block, or all of a tensor."""
        return self._adapted(self._contents.read(part, name, offsets, shape))

    def whole(self) -> State:
        """Everything."""
        state = self._contents.whole()
        state |= {part: {} for part in self._left_out}
        return {
            part: {name: self._adapted(tensor) for name, tensor in tensors.items()}
            for part, tensors in state.items()
        }

    def _adapted(self, tensor: Tensor) -> Tensor:
        # Adam keeps its step count in fp32 whatever the weights are, so scalars stay as they are.
        return tensor.to(self._precision) if tensor.is_floating_point() and tensor.dim() else tensor


@contextlib.contextmanager
def fitting(found: Checkpoint) -> Iterator[None]:
    """Say in words that a checkpoint is of another model."""
    try:
        yield
    except RuntimeError as error:
        raise RunFailed(f"the checkpoint {found.path.name} does not fit the model: {error}") from None


def export(job: Job, step: int) -> None:
    """distributed_model_checkpoint.pt, by a rank that holds all of the state."""
    write_model(job.run, job.parameters, job.strategy.state(), step)


def write_model(run: Run, parameters: Parameters, state: State, step: int) -> None:
    """distributed_model_checkpoint.pt: plain tensors and numbers, loads with weights_only=True, and without a GPU."""
    optimizer = parameters.training.optimizer
    state = {part: {name: value.cpu() for name, value in tensors.items()} for part, tensors in state.items()}
    needed = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    with full_disk.needing(run.model, needed, WHOLE), temporary_beside(run.model) as temporary:
        torch.save(
            {
                "model": state["model"],
                "optimizer": {
                    "name": optimizer.name,
                    "options": dict(optimizer.options),
                    "state": state.get("optimizer", {}),
                },
                "step": step,
                "parameters": parameters.to_value(),
            },
            temporary,
        )
        with temporary.open("rb+") as file:
            fsync(file.fileno())
        set_mode(temporary, 0o644)
        temporary.replace(run.model)
    fsync_folder(run.path)
