"""When a rank saves, and what the checkpoint says of itself. How it is written is checkpoint.py and sharded.py."""

import time
from typing import Any

from lockstep.engine import checkpoint, sharded
from lockstep.engine.job import Job
from lockstep.engine.log import say
from lockstep.engine.optimizers import learning_rate
from lockstep.errors import RunFailed
from lockstep.running_time import RunningTime


def checkpoint_due(job: Job, step: int) -> bool:
    """Whether the parameters ask for a checkpoint after this many updates."""
    options = job.parameters.checkpoint
    if options.every_steps:
        return step % options.every_steps == 0
    return bool(options.every_epochs) and step % (options.every_epochs * job.batches.steps_per_epoch) == 0  # type: ignore[operator]


def save(job: Job, step: int) -> None:
    """Rank 0 commits the state; the others go on and meet it in the next step's collective.

    Where no rank has all of it, every rank writes its own slices, and they commit them together.
    """
    job.saved_step = step
    if job.rank != 0 and not job.strategy.sharded:
        return
    job.board.enter("checkpoint")
    folder = job.run.checkpoints
    meta = about(job, step) if job.rank == 0 else {"step": step}
    if job.strategy.sharded:
        ranks = sharded.Ranks(job.rank, job.parameters.distributed.world_size, job.strategy.total)
        sharded.save(folder, job.strategy.slices(), meta, ranks)
    else:  # the ranks of a sharded one meet before they commit; here only rank 0 comes
        wait_for_lines(job, step)
        checkpoint.save(folder, job.strategy.state(), meta)
    say(f"saved the checkpoint of step {step}")
    if job.rank == 0:
        checkpoint.prune(folder, job.parameters.checkpoint.keep, job.best["step"] if job.best else None)


def wait_for_lines(job: Job, step: int) -> None:
    """Until every rank has written its metrics up to this step. Raises RunFailed after the timeout of a message.

    A line follows the step's last message. A rank that is killed between the two would be resumed behind a step
    that it left no line of, and its samples be missing in the results for ever.
    """
    epochs = step // job.batches.steps_per_epoch
    seconds = job.parameters.distributed.timeout_seconds
    waited = RunningTime()
    while (rank := job.board.behind(step, epochs)) is not None:
        if waited.seconds() > seconds:
            raise RunFailed(
                f"rank {rank} has not noted step {step} within {seconds:g} s of rank 0", "timeout"
            )
        time.sleep(0.0001)


def about(job: Job, step: int) -> dict[str, Any]:
    """A checkpoint's state.json: what is needed to go on, beside the tensors."""
    training = job.parameters.training
    validated = job.validated
    # Only what is kept can be the best: a better epoch that left no checkpoint helps nobody.
    if (
        validated
        and validated["step"] == step
        and (job.best is None or validated["validation_loss"] < job.best["validation_loss"])
    ):
        job.best = validated
    return {
        "step": step,
        "epochs_done": step // job.batches.steps_per_epoch,
        "steps_per_epoch": job.batches.steps_per_epoch,
        "global_batch_size": training.global_batch_size,
        "best": job.best,
        "optimizer": {"name": training.optimizer.name, "options": training.optimizer.options},
        "scheduler": {
            "name": training.schedule.name,
            "options": training.schedule.options,
            "learning_rate": learning_rate(training, max(step, 1), job.steps),
        },
        "precision": training.precision,
        "loss_scale": job.strategy.passes.loss_scale.state(),
        "aliases": job.strategy.aliases,
        "seed": job.parameters.seed,
        "made_by": {
            "run_id": job.run.run_id,
            "strategy": job.parameters.distributed.strategy.name,
            "world_size": job.parameters.distributed.world_size,
        },
    }
