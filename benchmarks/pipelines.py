"""The bubble of every pipeline schedule, measured beside what it is on paper: `uv run benchmarks/pipelines.py`.

By default the layers wait instead of computing (`waiting_layers`), so that what is measured is the schedule, whatever
else the machine does and however few cores it has. With `--compute` they are those of an mlp.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEDULES = [
    ("gpipe", 1),
    ("1f1b", 1),
    ("interleaved", 2),
    ("zero_bubble", 1),
    ("zero_bubble", 2),
    ("zero_bubble_v", 2),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--milliseconds", type=float, default=5.0, help="that a layer waits")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument(
        "--compute", action="store_true", help="an mlp of 2 x ranks + 1 layers of 1024 numbers"
    )
    options = parser.parse_args()
    print(
        "| schedule | stages a rank | (p-1)/(m+p-1) | of the schedule | measured | step, ms | activations kept |"
    )
    print("| --- | --: | --: | --: | --: | --: | --- |")
    for schedule, stages in SCHEDULES:
        seen = measured(schedule, stages, options)
        bubble = seen["bubble"]
        print(
            f"| {schedule} | {stages} | {bubble['classic']:.1%} | {bubble['of_schedule']:.1%} | "
            f"{bubble['measured']:.1%} | {seen['milliseconds']:.1f} | {', '.join(map(str, seen['kept']))} |",
            flush=True,
        )


def measured(schedule: str, stages: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run."""
    depth = 2 * options.ranks
    batch = 64 * options.micro_batches
    # As many stages are of as many layers: the last layer of the mlp is small, and goes with the one before it.
    model = (
        ["model=mlp", f"model.hidden_sizes=[{', '.join(['1024'] * depth)}]"]
        if options.compute
        else [
            "model=benchmarks.waiting_layers:layers",
            f"model.depth={depth}",
            f"model.milliseconds={options.milliseconds}",
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, str(ROOT / "pipeline.py"), "--catalog", folder, "--run-id", "r", *model,
                "data=synthetic", f"data.num_samples={2 * batch * options.steps}", "data.test_fraction=0.5",
                "data.validation_fraction=0.0", "data.input_size=1024", "training.epochs=1",
                f"training.global_batch_size={batch}", f"distributed.world_size={options.ranks}",
                "distributed.threads_per_rank=1",
                f"distributed.strategy={{name: pipeline, schedule: {schedule}, stages_per_rank: {stages}, "
                f"micro_batches: {options.micro_batches}}}",
            ],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        run = Path(folder) / "r"
        training = json.loads((run / "distributed_training_results.json").read_text(encoding="utf-8"))[
            "training"
        ]
        lines = [
            json.loads(line)
            for line in (run / "metrics" / "rank-0.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    times = sorted(line["step_seconds"] for line in lines if line["kind"] == "step")
    start = next(line for line in lines if line["kind"] == "start")
    return {
        "bubble": training["bubble"],
        "milliseconds": 1000 * times[len(times) // 2],
        "kept": start["strategy"]["activations_kept"],
    }


if __name__ == "__main__":
    main()
