"""Training in place, for tests: the pipeline's own steps, without Runnable around them."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

from lockstep import parameters
from lockstep.catalog import events, status
from lockstep.catalog.run import Run, claim
from lockstep.engine.checkpoint import Checkpoint
from lockstep.files import read_json, write_atomically
from lockstep.orchestration import steps
from lockstep.orchestration.display import Display
from lockstep.orchestration.session import Session, active

SMALL = (
    "data=synthetic",
    "data.num_samples=211",  # train 147: a prime-ish number that no world size divides
    "data.input_size=12",
    "data.num_classes=5",
    "model.hidden_sizes=[16]",
    "training.epochs=3",
    "training.global_batch_size=20",
    "training.learning_rate=0.01",
    "training.precision=fp64",
)
_numbers = itertools.count()


def train(server: Any, catalog: Path, *overrides: str, start: Path | None = None) -> Run:
    """A trained run, of the small parameters unless overridden."""
    own_model = any(word.startswith("model=") for word in overrides)  # which has no hidden_sizes
    own_data = any(word.startswith("data=") for word in overrides)
    base = [word for word in SMALL if not (own_model and word.startswith("model."))]
    base = [word for word in base if not (own_data and word.startswith("data"))]
    return run_of_parameters(server, catalog, parameters.read(None, [*base, *overrides]), start)


def run_of_parameters(
    server: Any, catalog: Path, wanted: parameters.Parameters, start: Path | None = None
) -> Run:
    """A trained run of exactly these parameters."""
    run = claim(catalog, f"run-{next(_numbers)}")
    descriptor = status.hold(run)
    write_atomically(run.parameters, parameters.dump(wanted))
    if start is not None:
        from lockstep.orchestration.start import Parent, adopt

        adopt(run, Parent(Run(start.parent.parent), start))
    events.append(run, "created", run_id=run.run_id, tag=None, parent=None, summary={})
    value = wanted.to_value()
    try:
        with active(Session(run, Display(quiet=True), Path.cwd(), server)):
            steps.prepare_data(value["seed"], value["data"])
            steps.setup_distributed(**value)
            steps.train(value["distributed"])
            steps.aggregate_metrics()
    finally:
        status.release(run, descriptor)
    return run


def evaluate(server: Any, run: Run) -> dict[str, Any]:
    """Judge a trained run's checkpoints; the ``evaluation`` part of its results."""
    descriptor = status.hold(run)
    try:
        with active(Session(run, Display(quiet=True), Path.cwd(), server)):
            steps.evaluate(parameters.read(run.parameters, []).to_value()["distributed"])
    finally:
        status.release(run, descriptor)
    return results(run)["evaluation"]


def final_state(run: Run) -> dict[str, Any]:
    """The tensors of the last checkpoint: model and optimizer, by name."""
    last = max(run.checkpoints.glob("step-*"))
    state = Checkpoint(last, {}).tensors()
    return {
        f"{part}/{name}": value.numpy()
        for part in ("model", "optimizer")
        for name, value in state.get(part, {}).items()
    }


def bits(run: Run) -> str:
    """A digest of the tensors' bytes of the last checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(final_state(run).items()):
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


def largest_difference(a: Run, b: Run) -> float:
    """Over all tensors of the last checkpoints."""
    left, right = final_state(a), final_state(b)
    assert left.keys() == right.keys()
    return max(float(abs(left[name] - right[name]).max()) for name in left)


def results(run: Run) -> dict[str, Any]:
    """distributed_training_results.json."""
    return read_json(run.results)
