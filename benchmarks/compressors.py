"""What each compressor costs and brings on digits: a table, and the loss curves as a plot.

uv run benchmarks/compressors.py [--transport tcp] [--epochs 30] [--world-size 2] [--plot FILE] [--json]

Every line is one whole run of the pipeline, in a catalog of its own that shares the prepared data. Bytes are those
that the transport counted, headers included. Samples/s compare within one run of this file only: the machine is
another by the next one, and on one machine without a slow network compression costs time and saves none.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import commands
from commands import ROOT
from compressors_plot import draw
from tables import table

KINDS = {
    "uncompressed": "null",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "powersgd, rank 2": "{name: powersgd, rank: 2}",
    "topk, 1 %": "{name: topk, ratio: 0.01}",
    "topk, 1 %, no error feedback": "{name: topk, ratio: 0.01, error_feedback: false}",
}
OPTIMIZERS = {
    "adam, learning rate 0.001 (the shipped parameters)": (),
    "sgd with momentum, learning rate 0.1": ("training.optimizer=sgd", "training.learning_rate=0.1"),
}


def measured(catalog: Path, name: str, words: tuple[str, ...], options: argparse.Namespace) -> dict[str, Any]:
    """One run: the figures of its line, and its curve."""
    strategy = (
        f"{{name: allreduce, transport: {options.transport}, algorithm: auto, compressor: {KINDS[name]}}}"
    )
    commands.run(
        ["pipeline.py", "--catalog", str(catalog), "--run-id", "measured",
         "--parameters", str(ROOT / "parameters.yaml"), *words, f"distributed.strategy={strategy}",
         f"distributed.world_size={options.world_size}", f"training.epochs={options.epochs}",
         f"seed={options.seed}"]
    )  # fmt: skip
    record = catalog / "measured"
    results = json.loads((record / "distributed_training_results.json").read_text(encoding="utf-8"))
    record.rename(catalog / f"{len(list(catalog.iterdir()))}-{KINDS[name][:4].strip('{')}")
    final = results["evaluation"]["final"]
    return {
        "bytes_per_step": results["ranks"][0]["wire_bytes"] / results["ranks"][0]["steps"],
        "samples_per_second": results["training"]["samples_per_second"],
        "train_loss": final["train"]["loss"],
        "train_accuracy": final["train"]["accuracy"],
        "test_loss": final["test"]["loss"],
        "test_accuracy": final["test"]["accuracy"],
        "losses": [epoch["train"]["loss"] for epoch in results["epochs"]],
    }


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every compressor under every optimizer."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as catalog:
        for title, words in OPTIMIZERS.items():
            found[title] = {}
            for name in KINDS:
                found[title][name] = measured(Path(catalog), name, words, options)
                print(f"{title}: {name}", file=sys.stderr, flush=True)
    return found


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The table of one optimizer."""
    plain = found["uncompressed"]["bytes_per_step"]
    lines = [["", "bytes a step", "ratio", "samples/s", "train loss", "accuracy", "test loss", "accuracy"]]
    for name, run in found.items():
        sent = run["bytes_per_step"]
        lines.append(
            [name, f"{sent:,.0f}", f"{plain / sent:.1f}" if sent else "-", f"{run['samples_per_second']:,.0f}",
             f"{run['train_loss']:.4f}", f"{run['train_accuracy']:.4f}",
             f"{run['test_loss']:.4f}", f"{run['test_accuracy']:.4f}"]
        )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--transport", default="tcp", help="of the ranks: tcp, gloo or shm")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "compressors.svg")
    parser.add_argument("--json", action="store_true", help="every figure and curve as JSON")
    parser.add_argument("--from-json", type=Path, help="draw what --json printed, and measure nothing")
    options = parser.parse_args()
    if options.from_json:
        found = json.loads(options.from_json.read_text(encoding="utf-8"))
    else:
        commands.adopt_orphans()
        found = measure(options)
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    options.plot.write_text(draw(found), encoding="utf-8")
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"digits, {options.world_size} ranks on {len(os.sched_getaffinity(0))} cores, {options.transport}, "
        f"seed {options.seed}; bytes are what rank 0 sent"
    )
    for title, runs in found.items():
        print(f"\n{title}\n{table(rows(runs))}")


if __name__ == "__main__":
    main()
