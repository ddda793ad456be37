"""The training loop of one rank. It knows no strategy by name: what they share out is behind the seam."""

import math
from time import process_time
from typing import Any

import torch

from lockstep.engine.job import Job
from lockstep.engine.judging import Seen, evaluate, rows_of_a_pass
from lockstep.engine.log import say_epoch
from lockstep.engine.metrics import fingerprint, fingerprints, gradient_fingerprints, rss_bytes
from lockstep.engine.optimizers import learning_rate
from lockstep.engine.restore import warn
from lockstep.engine.saving import checkpoint_due, save
from lockstep.errors import RunFailed
from lockstep.strategies._memory import gradient_bytes, optimizer_bytes, parameter_bytes
from lockstep.strategies.base import Batch, Outcome, Strategy, clock
from lockstep.strict_json import name_of


def train(job: Job, step: int) -> int:
    """Train from ``step`` updates done until the plan's end or until all ranks are asked to stop."""
    job.epoch_began = clock()
    while step < job.steps and not job.board.should_stop(step, job.strategy.steps_to_meeting(step)):
        take_step(job, step)
        step += 1
        saving = checkpoint_due(job, step) or step == job.steps
        if saving:
            job.strategy.agree()  # before the validation: what is validated is what is saved
        if saving or step % job.batches.steps_per_epoch == 0:
            job.strategy.share_buffers()
        if step % job.batches.steps_per_epoch == 0:
            end_epoch(job, step)
        if saving:
            save(job, step)
    if job.saved_step != step:
        job.strategy.agree()
        job.strategy.share_buffers()
        save(job, step)
    return step


def take_step(job: Job, done: int) -> None:
    """Update ``done + 1``: data, forward and backward, agreement, the optimizer, a line of metrics."""
    board, strategy = job.board, job.strategy
    rate = learning_rate(job.parameters.training, done + 1, job.steps)
    for group in strategy.optimizer.param_groups if strategy.optimizer else ():
        group["lr"] = rate
    began, cpu_began = clock(), process_time()
    board.enter("data")
    batch = job.batches(done)
    strategy.draws = job.parameters.seed, done
    fed = clock()
    board.enter("compute")
    outcome = strategy.forward_backward(batch)
    norm = strategy.sync()
    if not job.held:
        job.held = {"gradients": gradient_bytes(strategy.module)}
    stop_unless_finite(outcome, norm, done + 1, job.rank)
    # The first step as well: what differs in code or parameters shows there, tensor by tensor.
    due = done == 0 or (done + 1) % job.parameters.training.digest_every == 0
    digests = digests_before_update(strategy, batch) if due else {}
    board.enter("apply")
    strategy.apply()
    ended = clock()
    # A step that overflowed in fp16 was left out, and the optimizer has made nothing yet.
    if "parameters" not in job.held and not strategy.passes.loss_scale.overflowed:
        job.held |= {
            "parameters": parameter_bytes(strategy.module), "optimizer": optimizer_bytes(strategy.optimizer)
        }  # fmt: skip
    samples = batch.samples if strategy.counts else 0
    if not strategy.counts:
        outcome = Outcome(0.0, 0)
    sums = job.epoch_sums
    sums[0] += outcome.loss * samples
    sums[1] += outcome.correct
    sums[2] += samples
    if due:
        digests |= digests_after_update(strategy, digests["digest_seconds"])
    sync_seconds, data_seconds = strategy.sync_seconds, fed - began
    job.metrics.write(
        "step",
        step=done + 1,
        epoch=done // job.batches.steps_per_epoch + 1,
        loss=outcome.loss,
        correct=outcome.correct,
        samples=samples,
        learning_rate=rate,
        grad_norm=norm,
        step_seconds=ended - began,
        compute_seconds=ended - fed - sync_seconds,
        sync_seconds=sync_seconds,
        data_seconds=data_seconds,
        cpu_seconds=process_time() - cpu_began,
        wire_bytes=strategy.wire_bytes,
        **strategy.passes.loss_scale.notes(),
        **strategy.measured,
        **digests,
    )
    board.write("samples", samples)
    board.write("loss", outcome.loss)
    board.write("step", done + 1)
    if due and strategy.replicated:
        job.watch.compare(done + 1, digests["parameter_digests"])


def digests_before_update(strategy: Strategy, batch: Batch) -> dict[str, Any]:
    """Fingerprints of this rank's samples, and of the gradients as the optimizer is about to be given them.

    They are those of all ranks together where the strategy reduces them, and clipped. Where it does not (local
    training, servers that hold the weights) they are this rank's own, and are called so: ranks differ in them.
    """
    began = clock()
    name = "gradient_digests" if strategy.reduces_gradients else "own_gradient_digests"
    features = (
        fingerprint(batch.features) + fingerprint(batch.labels) if batch.weight and strategy.counts else 0
    )
    prints = gradient_fingerprints(strategy.fingerprinted())
    return {"batch_digest": features, name: prints, "digest_seconds": clock() - began}


def digests_after_update(strategy: Strategy, spent: float) -> dict[str, Any]:
    """Fingerprints of the weights, whether they are those of all ranks, and what all fingerprints cost."""
    began = clock()
    return {
        "parameter_digests": fingerprints(strategy.fingerprinted()),
        "replicated": strategy.replicated,
        "rss_bytes": rss_bytes(),
        "digest_seconds": spent + clock() - began,
    }


def stop_unless_finite(outcome: Outcome, norm: float, step: int, rank: int) -> None:
    """Raise before the optimizer is let near the weights, so that no poisoned state is ever kept."""
    if math.isfinite(outcome.loss) and math.isfinite(norm):
        return
    raise RunFailed(
        f"the loss of rank {rank} is {outcome.loss} and the gradients' norm {norm} at step {step}: nothing was "
        "applied, and the last checkpoint is from before it. Try a smaller training.learning_rate, "
        "training.max_grad_norm, warm-up steps, or look at the data",
        "not finite",
    )


def tell_not_finite(job: Job, epoch: int, value: float) -> None:
    """Training is sound, and goes on; the user may want to stop it. Said once, by rank 0."""
    if not job.told_not_finite and job.rank == 0:
        warn(
            job.run,
            f"the validation loss of epoch {epoch} is {name_of(value)}, though the losses of the training steps are "
            "finite: look at what the model does outside of training (.eval()) and at the validation data. Such a loss "
            "is recorded by its name, left out of charts, and never the best checkpoint's",
        )
    job.told_not_finite = True


def end_epoch(job: Job, step: int) -> None:
    """Validate this rank's share, agree on the whole split's loss, and note it for the checkpoint."""
    job.board.enter("validation")
    epoch = step // job.batches.steps_per_epoch
    features, labels = job.validation
    seen = evaluate(
        job.strategy.module,
        features,
        labels,
        shard=job.strategy.shard(),
        trained_rows=rows_of_a_pass(job.parameters),
        counted=job.strategy.counts,
        writes_weights=bool(job.strategy.observed.written_in_evaluation),
    )
    total = job.strategy.total(torch.tensor([seen.loss], dtype=torch.float64)) if len(labels) else None
    if total is not None:
        value = float(total) / len(labels)
        if math.isfinite(value):
            job.validated = {"step": step, "epoch": epoch, "validation_loss": value}
        else:
            tell_not_finite(job, epoch, value)
    now = clock()
    loss, correct, samples = job.epoch_sums
    job.metrics.write(
        "epoch",
        epoch=epoch,
        step=step,
        seconds=now - job.epoch_began,
        train=(train := Seen(loss, correct, int(samples)).means()),
        validation=(validation := seen.means()),
    )
    say_epoch(epoch, step, now - job.epoch_began, train, validation)
    job.epoch_sums = [0.0, 0.0, 0.0]
    job.epoch_began = now
    job.board.write("epoch", epoch)
