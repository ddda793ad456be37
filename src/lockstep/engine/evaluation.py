"""Evaluating a finished run, in one process of its own, from what is on disk and never from memory."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lockstep.catalog.run import Run
from lockstep.engine import checkpoint
from lockstep.engine.advice import errors_in_words
from lockstep.engine.checkpoint import Checkpoint
from lockstep.engine.device import HOST, choose, placed
from lockstep.engine.features import Features, open_splits
from lockstep.engine.judging import Seen, evaluate, rows_of_a_pass
from lockstep.engine.log import say
from lockstep.engine.precision import PRECISIONS
from lockstep.engine.rank import launched, make_module
from lockstep.engine.refusals import refuse_other_constants
from lockstep.errors import RunFailed
from lockstep.files import read_json, write_json
from lockstep.parameters import Parameters, read
from lockstep.strategies._ema import aliases, averaged
from lockstep.strategies._observed import Observed

LOG = "evaluator.log"
SPLITS = ("train", "validation", "test")
MOST_IN_TABLE = 256  # classes
RESULT = "evaluation.json"  # in the live folder: the pipeline moves it into the results


def main(index: int, run_path: str, parent_pid: int) -> None:
    """Restore the final and the best checkpoint and look at every split; the test split is seen only here."""
    run = Run(Path(run_path))
    with launched(run, index, run.logs / LOG, parent_pid):
        parameters, plan = read(run.parameters, []), read_json(run.plan)
        torch.set_num_threads(plan["cores"])
        with errors_in_words("in the evaluation"):
            device = choose(plan, 0, parameters.training)  # the ranks have ended and left it
            say(f"looks at the checkpoints on {device} with {torch.get_num_threads()} threads")
            write_json(run.live / RESULT, evaluate_run(run, parameters, device))
            say("ended")


def evaluate_run(run: Run, parameters: Parameters, device: torch.device = HOST) -> dict[str, Any]:
    """The ``evaluation`` part of the results."""
    data = read_json(run.data / "data.json")
    final, passed_over = checkpoint.newest(run.checkpoints)
    if final is None:
        raise RunFailed("; ".join(["there is no checkpoint to evaluate", *passed_over]))
    best = final
    if final.meta["best"] and final.meta["best"]["step"] != final.step:
        best = checkpoint.open_verified(run.checkpoints / checkpoint.folder_name(final.meta["best"]["step"]))
    precision = PRECISIONS[parameters.training.precision]
    splits = open_splits(run.data, SPLITS, parameters, precision)
    rows = rows_of_a_pass(parameters)
    module = placed(make_module(run, parameters), device, parameters.training)
    observed = Observed.of_record(read_json(run.plan).get("model", {}))
    refuse_other_constants(module, observed.constants)
    state = final.tensors()
    judged = judge(module, final, state["model"], splits, data, rows)
    averages = averaged(state, aliases(module))
    return {
        "classes": data["classes"],
        "final": judged,
        "best": judged if best is final else judge(module, best, best.tensors()["model"], splits, data, rows),
        **({"ema": judge(module, final, averages, splits, data, rows)} if averages else {}),
    }


def judge(
    module: torch.nn.Module,
    found: Checkpoint,
    weights: dict[str, Tensor],
    splits: dict[str, tuple[Features, Tensor]],
    data: dict[str, Any],
    trained_rows: int,
) -> dict[str, Any]:
    """Loss and accuracy of one checkpoint on each split; on test also who was taken for whom."""
    module.load_state_dict(weights)
    result: dict[str, Any] = {"step": found.step, "epoch": found.meta["epochs_done"]}
    for name, (features, labels) in splits.items():
        if not len(labels):
            result[name] = None
            continue
        counted = Counted(data["classes"], labels) if name == "test" else None
        seen = evaluate(module, features, labels, trained_rows=trained_rows, look=counted)
        result[name] = seen.means() | of_tokens(seen, data)
        if counted is not None:
            result[name] |= counted.tables()
    return result


def of_tokens(seen: Seen, data: dict[str, Any]) -> dict[str, float]:
    """What language models are compared by: bits for each token, and perplexity (infinite: left out)."""
    if data.get("kind") != "tokens":
        return {}
    loss = seen.loss / seen.samples  # nats for each token
    exact = {"perplexity": math.exp(loss)} if loss < math.log(sys.float_info.max) else {}
    return {f"bits_per_{data['token']}": loss / math.log(2), **exact}


class Counted:
    """Counts who was taken for whom, where a sample has one label; who is right for how many, in any case."""

    def __init__(self, classes: list[str], labels: Tensor) -> None:
        self.classes, many = classes, len(classes)
        # With many classes the table would be larger than the rest of the record, and nobody could read it.
        self.confusion = torch.zeros(many, many, dtype=torch.int64) if many <= MOST_IN_TABLE else None
        self.hits, self.predicted, self.support = torch.zeros(3, many, dtype=torch.int64)
        self.wanted = labels.dim() == 1

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        """Take in one pass."""
        if not self.wanted:
            return
        predicted, many = logits.argmax(dim=1).cpu(), len(self.classes)
        labels = labels.cpu()
        self.hits += torch.bincount(labels[predicted == labels], minlength=many)
        self.predicted += torch.bincount(predicted, minlength=many)
        self.support += torch.bincount(labels, minlength=many)
        if self.confusion is not None:
            pairs = torch.bincount(labels * many + predicted, minlength=many * many)
            self.confusion += pairs.view(many, many)

    def tables(self) -> dict[str, Any]:
        """``confusion`` (rows are the true classes), and precision and recall of each class."""
        if not self.wanted:
            return {}
        matrix = {} if self.confusion is None else {"confusion": self.confusion.tolist()}
        return matrix | {"per_class": per_class(self.hits, self.predicted, self.support, self.classes)}


def per_class(hits: Tensor, predicted: Tensor, support: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    """Precision and recall of each class; None where there is nothing to divide by."""
    return [
        {
            "class": name,
            "precision": int(hits[i]) / int(predicted[i]) if predicted[i] else None,
            "recall": int(hits[i]) / int(support[i]) if support[i] else None,
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    ]
