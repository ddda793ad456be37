"""Evaluating a finished run, in one process of its own, from what is on disk and never from memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockstep.catalog.run import Run
from lockstep.engine import checkpoint
from lockstep.engine.batches import map_split
from lockstep.engine.checkpoint import Checkpoint
from lockstep.engine.loop import evaluate
from lockstep.engine.optimizers import PRECISIONS
from lockstep.engine.rank import launched, make_module
from lockstep.errors import RunFailed
from lockstep.files import read_json, write_json
from lockstep.parameters import Parameters, read

LOG = "evaluator.log"
RESULT = "evaluation.json"  # in the live folder: the pipeline moves it into the results


def main(index: int, run_path: str, parent_pid: int) -> None:
    """Restore the final and the best checkpoint and look at every split; the test split is seen only here."""
    run = Run(Path(run_path))
    with launched(run, index, run.logs / LOG, parent_pid):
        parameters = read(run.parameters, [])
        torch.set_num_threads(read_json(run.plan)["cores"])
        write_json(run.live / RESULT, evaluate_run(run, parameters))


def evaluate_run(run: Run, parameters: Parameters) -> dict[str, Any]:
    """The ``evaluation`` part of the results."""
    classes = read_json(run.data / "data.json")["classes"]
    final, passed_over = checkpoint.newest(run.checkpoints)
    if final is None:
        raise RunFailed("; ".join(["there is no checkpoint to evaluate", *passed_over]))
    best = final
    if final.meta["best"] and final.meta["best"]["step"] != final.step:
        best = checkpoint.open_verified(run.checkpoints / checkpoint.folder_name(final.meta["best"]["step"]))
    precision = PRECISIONS[parameters.training.precision]
    splits = {
        name: map_split(run.data / f"{name}.safetensors", precision)
        for name in ("train", "validation", "test")
    }
    module = make_module(run, parameters)
    judged = judge(module, final, splits, classes)
    return {
        "classes": classes,
        "final": judged,
        "best": judged if best is final else judge(module, best, splits, classes),
    }


def judge(
    module: torch.nn.Module, found: Checkpoint, splits: dict[str, tuple[Tensor, Tensor]], classes: list[str]
) -> dict[str, Any]:
    """Loss and accuracy of one checkpoint on each split; on test also who was taken for whom."""
    module.load_state_dict(found.tensors()["model"])
    result: dict[str, Any] = {"step": found.step, "epoch": found.meta["epochs_done"]}
    for name, (features, labels) in splits.items():
        if not len(labels):
            result[name] = None
            continue
        loss, predicted = evaluate(module, features, labels)
        result[name] = {
            "loss": loss / len(labels),
            "accuracy": int((predicted == labels).sum()) / len(labels),
            "samples": len(labels),
        }
        if name == "test":
            confusion = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2)
            counts = confusion.reshape(len(classes), len(classes))
            result[name] |= {"confusion": counts.tolist(), "per_class": per_class(counts, classes)}
    return result


def per_class(confusion: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """Precision and recall of each class from a (true, predicted) table; None where there is nothing to divide by."""
    hits, predicted, support = confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1)
    return [
        {
            "class": name,
            "precision": int(hits[i]) / int(predicted[i]) if predicted[i] else None,
            "recall": int(hits[i]) / int(support[i]) if support[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]
