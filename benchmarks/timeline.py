"""Where the wall time of a whole `pipeline.py` went, told from what the run's folder holds."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from commands import Finished

PHASES = (
    "python and command line",
    "runnable and its context",
    "prepare_data",
    "setup_distributed",
    "waiting for torch in the server",
    "ranks: group, model, first passes",
    "training steps",
    "metrics, validation, checkpoints",
    "export, leaving, noticing",
    "aggregate_metrics",
    "evaluate",
    "report",
    "between the pipeline's steps",
    "end of the pipeline, seal",
    "closing table, exit",
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stamp(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


class Record:
    """A finished run's folder, with the figures that the comparison needs."""

    def __init__(self, folder: Path, command: Finished) -> None:
        self.command = command
        self.results = json.loads((folder / "distributed_training_results.json").read_text(encoding="utf-8"))
        self.events = read_lines(folder / "events.jsonl")
        files = sorted((folder / "metrics").glob("rank-*.jsonl"))
        self.metrics = [read_lines(file) for file in files]
        ends = [lines[-1] for lines in self.metrics]
        assert all(end["kind"] == "end" for end in ends), f"{folder} holds no whole run"
        self.loop_seconds: float = max(end["seconds"] for end in ends)
        # The last line is written as soon as the loop's clock stops, and nothing is written after it.
        self.loop_ended = max(file.stat().st_mtime for file in files)
        self.ranks_up = (folder / "metrics").stat().st_mtime  # the last rank has made its file

    def at(self, name: str, step: str | None = None) -> float:
        return next(stamp(e) for e in self.events if e["event"] == name and e.get("step") == step)

    def step_seconds(self, step: str) -> float:
        return self.at("step_finished", step) - self.at("step_started", step)

    @property
    def first_step(self) -> float:
        """When the first step began: the end of the loop less the slowest rank's loop."""
        return self.loop_ended - self.loop_seconds

    @property
    def first_step_seconds(self) -> float:
        return self.first_step - self.command.began

    @property
    def startup_share(self) -> float:
        return self.first_step_seconds / self.command.seconds

    def steps(self, rank: int) -> list[dict[str, Any]]:
        return [line for line in self.metrics[rank] if line["kind"] == "step"]

    @property
    def steps_seconds(self) -> float:
        """What rank 0 spent inside its steps: the others also wait there while it writes checkpoints."""
        return sum(float(line["step_seconds"]) for line in self.steps(0))

    @property
    def step_cpu_ms(self) -> float:
        """Processor time of a step, mean over ranks, without its line of metrics.

        It depends on how busy the machine is with others much less than the wall time does.
        """
        lines = [line for rank in range(len(self.metrics)) for line in self.steps(rank)[1:]]
        return 1000 * sum(float(line["cpu_seconds"]) for line in lines) / len(lines)

    @property
    def recorded_rate(self) -> float:
        """As the results say it: over the sum of each step's slowest rank."""
        return float(self.results["training"]["samples_per_second"])

    @property
    def in_step_rate(self) -> float:
        return float(self.results["training"]["samples"]) / self.steps_seconds

    @property
    def loop_rate(self) -> float:
        """Samples over the wall time of the loop: metrics, validation, checkpoints and all.

        Without the first step, as the bare script counts.
        """
        firsts = [self.steps(rank)[0] for rank in range(len(self.metrics))]
        samples = self.results["training"]["samples"] - sum(line["samples"] for line in firsts)
        return float(samples / (self.loop_seconds - max(line["step_seconds"] for line in firsts)))

    @property
    def accuracy(self) -> float:
        return float(self.results["evaluation"]["final"]["test"]["accuracy"])

    def phases(self) -> dict[str, float]:
        """Consecutive spans that add up to the command's wall time."""
        names = ("prepare_data", "setup_distributed", "aggregate_metrics", "evaluate", "report")
        own = {name: self.step_seconds(name) for name in names}
        train_began, train_ended = self.at("step_started", "train"), self.at("step_finished", "train")
        pipeline = self.at("step_finished", "report") - self.at("step_started", "prepare_data")
        spans = own | {
            "python and command line": self.at("created") - self.command.began,
            "runnable and its context": self.at("step_started", "prepare_data") - self.at("created"),
            "waiting for torch in the server": self.ranks_up - train_began,
            "ranks: group, model, first passes": self.first_step - self.ranks_up,
            "training steps": self.steps_seconds,
            "metrics, validation, checkpoints": self.loop_seconds - self.steps_seconds,
            "export, leaving, noticing": train_ended - self.loop_ended,
            "between the pipeline's steps": pipeline - sum(own.values()) - (train_ended - train_began),
            "end of the pipeline, seal": self.at("sealed") - self.at("step_finished", "report"),
            "closing table, exit": self.command.ended - self.at("sealed"),
        }
        return {name: spans[name] for name in PHASES}
