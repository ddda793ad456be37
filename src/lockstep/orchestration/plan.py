"""setup_distributed: how many ranks, threads and steps, decided once and written down."""

import math
import shutil
from pathlib import Path
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.errors import RunFailed
from lockstep.files import read_json
from lockstep.linux import cores, gpus
from lockstep.parameters import Choice, Parameters


def make(run: Run, parameters: Parameters) -> dict[str, Any]:
    """The content of distributed.json. RunFailed where the data cannot carry the plan."""
    data = read_json(run.data / "data.json")
    splits = {name: file["samples"] for name, file in data["files"].items()}
    options, batch = parameters.distributed, parameters.training.global_batch_size
    ranks, available = options.world_size, cores()
    one_thread = options.strategy.options.get("reduction") == "invariant"  # bits differ between thread counts
    threads = (
        1
        if one_thread
        else options.threads_per_rank or parent_threads(run, ranks) or max(available // ranks, 1)
    )
    steps_per_epoch = math.ceil(splits["train"] / batch)
    steps = steps_per_epoch * parameters.training.epochs
    check_start(run, steps_per_epoch, steps)
    strategy, where = options.strategy, device(parameters)
    return {
        "world_size": ranks,
        "threads_per_rank": threads,
        "cores": available,
        "device": where,
        "strategy": {"name": strategy.name, **strategy.options},
        # Processes beside the ranks: a strategy that has some has an option of this name.
        "servers": strategy.options.get("servers", 0),
        "backend": options.backend if where == "cpu" else "nccl",
        "start_method": options.start_method,
        "rendezvous": "file",
        "interface": "lo",
        "global_batch_size": batch,
        "per_rank_batch": per_rank_batch(batch, ranks, strategy),
        "steps_per_epoch": steps_per_epoch,
        "steps": steps,
        "splits": splits,
        "warnings": warnings(parameters, splits, threads, available) + other_data(run, data),
    }


def per_rank_batch(batch: int, ranks: int, strategy: Choice) -> list[int]:
    """How many samples of a global batch go through each rank: in a pipeline all of them."""
    groups = 1 if strategy.name == "pipeline" else strategy.options.get("data_parallel", ranks)
    if not groups or ranks % groups:
        groups = ranks  # which the strategy will refuse, and say why
    shares = [batch * (group + 1) // groups - batch * group // groups for group in range(groups)]
    return [shares[rank * groups // ranks] for rank in range(ranks)]


def device(parameters: Parameters) -> str:
    """cpu or cuda, for all ranks. RunFailed where cuda was asked for and there are fewer GPUs than ranks."""
    options, found = parameters.distributed, gpus()
    if options.device == "cpu":
        return "cpu"
    if found >= options.world_size:
        return "cuda"
    if options.device == "auto":
        return "cpu"
    raise RunFailed(
        f"distributed.device is cuda with {options.world_size} ranks, one GPU each, and {found} GPUs are to be seen "
        "here (CUDA_VISIBLE_DEVICES counts); allowed: fewer ranks, or device: cpu or auto"
    )


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
    compressor = parameters.distributed.strategy.options.get("compressor") or {}
    if compressor.get("name") == "topk" and parameters.training.optimizer.name.startswith("adam"):
        found.append(
            f"topk sends an element about every {1 / compressor['ratio']:.0f}th step, with what it was left owing, and "
            f"{parameters.training.optimizer.name} takes that for a rare large gradient: expect to need more steps "
            "than without; training.optimizer=sgd, for which error feedback was proven, needs about as many"
        )
    return found


def other_data(run: Run, data: dict[str, Any]) -> list[str]:
    """What a child must say whose parent was trained on other splits."""
    before = parent_of(run).get("data_identity")
    if before is None or before == data["identity"]:
        return []
    return [
        "the data, the splits or the seed differ from those of the run that this one starts from: samples that it "
        "was trained on may stand in this run's validation and test splits, so their accuracy can be too good"
    ]


def parent_of(run: Run) -> dict[str, Any]:
    """What the run's history says of its parent; empty where it has none."""
    created = next((event for event in events.read(run) if event["event"] == "created"), {})
    return created.get("parent") or {}


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object of an earlier attempt or run, or None where it is missing or damaged."""
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_sound(run: Run) -> bool:
    """Whether the plan and the description of the data can be worked with, so that they need not be made again."""
    decided, data = read(run.plan), read(run.data / "data.json")
    return (
        decided is not None
        and data is not None
        and {"world_size", "threads_per_rank", "steps", "steps_per_epoch", "splits", "cores"}
        <= decided.keys()
        and {"files", "input_shape", "classes", "identity"} <= data.keys()
        and isinstance(data["files"], dict)
        and set(data["files"]) == {"train", "validation", "test"}
    )


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
    parent = parent_of(run)
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
    for pattern in ("rendezvous-*", "words-*", "error-*.json", "notes.json"):
        for path in run.live.glob(pattern):
            path.unlink(missing_ok=True)
    for path in run.path.glob(".tmp-*"):
        path.unlink(missing_ok=True)


def notes(run: Run) -> list[str]:
    """What rank 0 had to say: damaged checkpoints that it passed over, caveats of the model."""
    path = run.live / "notes.json"
    try:
        return [str(note) for note in read_json(path)]
    except (OSError, ValueError):
        return []
