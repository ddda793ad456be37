"""setup_distributed: how many ranks, threads and steps, decided once and written down."""

import math
import shutil
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.errors import RunFailed
from lockstep.files import read_json
from lockstep.linux import cores
from lockstep.parameters import Parameters


def make(run: Run, parameters: Parameters) -> dict[str, Any]:
    """The content of distributed.json. RunFailed where the data cannot carry the plan."""
    data = read_json(run.data / "data.json")
    splits = {name: file["samples"] for name, file in data["files"].items()}
    options, batch = parameters.distributed, parameters.training.global_batch_size
    ranks, available = options.world_size, cores()
    one_thread = options.strategy.options.get("reduction") == "invariant"  # bits differ between thread counts
    threads = 1 if one_thread else options.threads_per_rank or parent_threads(run, ranks) or max(available // ranks, 1)
    steps_per_epoch = math.ceil(splits["train"] / batch)
    steps = steps_per_epoch * parameters.training.epochs
    check_start(run, steps_per_epoch, steps)
    strategy = options.strategy
    return {
        "world_size": ranks,
        "threads_per_rank": threads,
        "cores": available,
        "device": "cpu",
        "strategy": {"name": strategy.name, **strategy.options},
        # Processes beside the ranks: a strategy that has some has an option of this name.
        "servers": strategy.options.get("servers", 0),
        "backend": options.backend,
        "start_method": options.start_method,
        "rendezvous": "file",
        "interface": "lo",
        "global_batch_size": batch,
        "per_rank_batch": [batch * (rank + 1) // ranks - batch * rank // ranks for rank in range(ranks)],
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "splits": splits,
        "warnings": warnings(parameters, splits, threads, available),
    }


def warnings(parameters: Parameters, splits: dict[str, int], threads: int, available: int) -> list[str]:
    """What works, but costs something that a person would want to know."""
    found = []
    ranks = parameters.distributed.world_size
    if ranks > available:
        found.append(
            f"distributed.world_size is {ranks} on {available} cores: the ranks take turns, so each step takes "
            f"about {ranks / available:.1f} times as long as on {ranks} cores, and every collective waits for "
            "the rank that runs last. The maths is the same"
        )
    elif ranks * threads > available:
        found.append(f"{ranks} ranks with {threads} threads each share {available} cores: they take turns")
    batch = parameters.training.global_batch_size
    if splits["train"] < batch:
        found.append(
            f"training.global_batch_size is {batch} but there are {splits['train']} training samples: "
            "every epoch is one step of all of them"
        )
    if not splits["validation"]:
        found.append(
            "data.validation_fraction leaves no validation samples: the final checkpoint counts as the best"
        )
    return found


def check_start(run: Run, steps_per_epoch: int, steps: int) -> None:
    """Whether a run that starts from a parent's checkpoint can go on from there."""
    if not (run.start / "state.json").exists():
        return
    state = read_json(run.start / "state.json")
    complaint = start_complaint(state, steps_per_epoch, steps)
    if complaint:
        raise RunFailed(complaint)


def start_complaint(state: dict[str, Any], steps_per_epoch: int, steps: int) -> str | None:
    """Why a checkpoint cannot be the start of a plan of ``steps`` steps, or None where it can."""
    step, before = state["step"], state["steps_per_epoch"]
    if before != steps_per_epoch:
        if step % before:
            return (
                f"the checkpoint is in the middle of an epoch (step {step}, {before} to an epoch), and the data or "
                f"training.global_batch_size changed to {steps_per_epoch} steps to an epoch: the samples already "
                "seen cannot be told. Start from a checkpoint at the end of an epoch, or keep both as they were"
            )
        step = step // before * steps_per_epoch
    if step >= steps:
        return (
            f"the checkpoint has {step} steps done and the parameters ask for {steps} "
            f"({steps // steps_per_epoch} epochs): nothing is left to train. Raise training.epochs"
        )
    return None


def parent_threads(run: Run, ranks: int) -> int | None:
    """The parent's threads per rank, where it had as many ranks: bits differ between thread counts."""
    created = next((event for event in events.read(run) if event["event"] == "created"), {})
    parent = created.get("parent") or {}
    return parent.get("threads_per_rank") if parent.get("world_size") == ranks else None


def in_words(decided: dict[str, Any]) -> str:
    """One line for the display."""
    ranks, strategy = decided["world_size"], decided["strategy"]["name"]
    threads = decided["threads_per_rank"]
    shares = sorted(set(decided["per_rank_batch"]))
    share = "-".join(map(str, (shares[0], shares[-1]) if len(shares) > 1 else shares))
    return (
        f"{strategy} on {ranks} rank{'s' * (ranks > 1)}, {threads} thread{'s' * (threads > 1)} each, "
        f"{decided['steps']:,} steps of {decided['global_batch_size']} samples ({share} a rank)"
    )


def clear_leftovers(run: Run) -> None:
    """Remove what a killed attempt left: half-written checkpoints, rendezvous files, words of failed ranks."""
    for path in run.checkpoints.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in ("rendezvous-*", "words-*", "error-*.json", "passed-over.json"):
        for path in run.live.glob(pattern):
            path.unlink(missing_ok=True)
    for path in run.path.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def passed_over(run: Run) -> list[str]:
    """Damaged checkpoints that rank 0 met and did not resume from."""
    path = run.live / "passed-over.json"
    return list(read_json(path)) if path.exists() else []
