"""One picture of many ranks: every mean weighted by samples, every repeated step counted once."""

import re
import statistics
from pathlib import Path
from typing import Any

from lockstep.catalog.run import Run
from lockstep.errors import RunFailed
from lockstep.files import read_json, read_json_lines
from lockstep.parameters import Parameters, read
from lockstep.strict_json import real

_NAME = re.compile(r"rank-(\d+)(?:\.attempt-(\d+))?\.jsonl")
SECONDS = ("step_seconds", "compute_seconds", "sync_seconds", "data_seconds", "cpu_seconds")


class RankMetrics:
    """A rank's lines over all attempts. For a step that was repeated after a crash, the last attempt wins."""

    def __init__(self, rank: int, files: list[Path]) -> None:
        self.rank = rank
        self.steps: dict[int, dict[str, Any]] = {}
        self.epochs: dict[int, dict[str, Any]] = {}
        self.starts: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []
        for file in files:
            for line in read_json_lines(file):
                match line.get("kind"):
                    case "step":
                        self.steps[line["step"]] = line | {"loss": _real(line["loss"])}
                    case "epoch":
                        validation = line["validation"]
                        loss = {"loss": _real(validation["loss"])}
                        self.epochs[line["epoch"]] = line | {"validation": validation | loss}
                    case "start":
                        self.starts.append(line)
                    case "end":
                        self.ends.append(line)

    def sum(self, field: str) -> float:
        """Over all steps."""
        return float(sum(line[field] for line in self.steps.values()))


def _real(value: object) -> float:
    """A number of a line, which may be the name of one that is not finite."""
    found = real(value)
    if found is None:
        raise RunFailed(f"the metrics hold {value!r} where a number belongs")
    return found


def read_metrics(run: Run) -> list[RankMetrics]:
    """All ranks of a run, by number."""
    files: dict[int, dict[int, Path]] = {}
    for path in run.metrics.iterdir():
        found = _NAME.fullmatch(path.name)
        if found:
            files.setdefault(int(found[1]), {})[int(found[2] or 1)] = path
    return [RankMetrics(rank, [files[rank][n] for n in sorted(files[rank])]) for rank in sorted(files)]


def aggregate(run: Run) -> dict[str, Any]:
    """The content of distributed_training_results.json, without the evaluation."""
    parameters, plan = read(run.parameters, []), read_json(run.plan)
    ranks = read_metrics(run)
    if len(ranks) != plan["world_size"] or not all(rank.steps for rank in ranks):
        raise RunFailed(
            f"metrics of {len(ranks)} ranks were found in {run.metrics}, not of {plan['world_size']}"
        )
    return {
        "run_id": run.run_id,
        "dataset": parameters.data.name,
        "model": parameters.model.name,
        "strategy": parameters.distributed.strategy.name,
        "world_size": plan["world_size"],
        "training": training(ranks, parameters),
        "epochs": epochs(ranks, plan["steps_per_epoch"]),
        "ranks": [per_rank(rank) for rank in ranks],
        "memory": memory(ranks, plan),
    }


def memory(ranks: list[RankMetrics], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes of each rank by kind: as the plan foretold them, and as they were measured at the first update."""
    foretold = plan.get("memory", {}).get("ranks", [])
    return [
        {
            "rank": rank.rank,
            "predicted_bytes": foretold[rank.rank] if rank.rank < len(foretold) else None,
            "measured_bytes": (rank.ends[-1].get("held_bytes") or None) if rank.ends else None,
        }
        for rank in ranks
    ]


def training(ranks: list[RankMetrics], parameters: Parameters) -> dict[str, Any]:
    """The run as a whole: the time in the step loop is that of the rank that spent most in it."""
    steps = sorted(set.intersection(*(set(rank.steps) for rank in ranks)))
    samples = sum(int(rank.sum("samples")) for rank in ranks)
    seconds = max(rank.sum("step_seconds") for rank in ranks)
    total = sum(rank.sum("step_seconds") for rank in ranks)
    return {
        "first_step": steps[0],
        "steps": steps[-1],
        "epochs": parameters.training.epochs,
        "samples": samples,
        "seconds": seconds,
        "startup_seconds": max(
            (rank.starts[-1]["startup_seconds"] for rank in ranks if rank.starts), default=None
        ),
        "samples_per_second": samples / seconds if seconds else None,
        "waiting_share": sum(rank.sum("sync_seconds") for rank in ranks) / total if total else None,
        "attempts": max(len(rank.starts) for rank in ranks),
        **bubble(ranks),
    }


def bubble(ranks: list[RankMetrics]) -> dict[str, Any]:
    """The share of a step that the ranks of a pipeline wait for each other, beside what it is on paper.

    ``measured`` is the mean over the ranks of each one's median step; nothing for other strategies.
    """
    lines = [[line["bubble"] for line in rank.steps.values() if "bubble" in line] for rank in ranks]
    if not all(lines):
        return {}
    medians = [statistics.median(own) for own in lines]
    paper = ranks[0].starts[-1].get("strategy", {}).get("bubble", {}) if ranks[0].starts else {}
    return {"bubble": {**paper, "measured": statistics.fmean(medians), "by_rank": medians}}


def epochs(ranks: list[RankMetrics], steps_per_epoch: int) -> list[dict[str, Any]]:
    """Loss and accuracy of each whole epoch, over all ranks' samples."""
    result = []
    for epoch in sorted(set.intersection(*(set(rank.epochs) for rank in ranks))):
        lines = [rank.epochs[epoch] for rank in ranks]
        # From the step lines, so that an epoch which a crash cut in two is whole again.
        numbers = range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1)
        steps = [rank.steps[number] for rank in ranks for number in numbers if number in rank.steps]
        result.append(
            {
                "epoch": epoch,
                "step": lines[0]["step"],
                "seconds": max(line["seconds"] for line in lines),
                "learning_rate": ranks[0].steps[lines[0]["step"]]["learning_rate"],
                "train": _of_steps(steps),
                "validation": weighted([line["validation"] for line in lines]),
            }
        )
    return result


def _of_steps(steps: list[dict[str, Any]]) -> dict[str, Any] | None:
    samples = sum(step["samples"] for step in steps)
    if not samples:
        return None
    return {
        "loss": sum(step["loss"] * step["samples"] for step in steps) / samples,
        "accuracy": sum(step["correct"] for step in steps) / samples,
        "samples": samples,
    }


def weighted(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The mean over samples of the ranks' means over theirs; None where there are no samples."""
    samples = sum(part["samples"] for part in parts)
    if not samples:
        return None
    return {
        "loss": sum(part["loss"] * part["samples"] for part in parts) / samples,
        "accuracy": sum(part["accuracy"] * part["samples"] for part in parts) / samples,
        "samples": samples,
    }


def per_rank(rank: RankMetrics) -> dict[str, Any]:
    """Totals of one rank."""
    samples, totals = int(rank.sum("samples")), {field: rank.sum(field) for field in SECONDS}
    spent = totals["step_seconds"]
    return {
        "rank": rank.rank,
        "steps": len(rank.steps),
        "samples": samples,
        "samples_per_second": samples / spent if spent else None,
        **totals,
        "waiting_share": totals["sync_seconds"] / spent if spent else None,
        "peak_rss_bytes": max((end["peak_rss_bytes"] for end in rank.ends), default=None),
        "wire_bytes": int(rank.sum("wire_bytes")),
        "startup_seconds": rank.starts[-1]["startup_seconds"] if rank.starts else None,
    }
