"""Every strategy on the same model and data: `uv run benchmarks/strategies.py [--rounds 3] [--world-size 4]`.

Each round runs our whole command under each strategy, and beside them the loops of plain DDP and plain FSDP2 that
`bare_ddp.py` holds, in an order that turns from round to round. Ratios are taken within a round; medians shown.
Compare figures of one run of this file only: the machine's load, clock and caches are others by the next one.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import commands
from tables import over, table
from timeline import Record, read_lines

# The strategies with their options; `single` is always there, since the losses are held against its.
STRATEGIES = {
    "ddp": "ddp",
    "naive": "naive",
    "allreduce, shm": "{name: allreduce, transport: shm}",
    "allreduce, tcp ring": "{name: allreduce, transport: tcp, algorithm: ring}",
    "allreduce, invariant": "{name: allreduce, reduction: invariant}",
    "allreduce, int8": "{name: allreduce, compressor: int8}",
    "parameter server": "{name: parameter_server, transport: shm}",
    "local sgd, every 8": "{name: local_sgd, every: 8}",
    "fsdp, gloo's reduce-scatter": "{name: fsdp, reduce_scatter: backend}",
    "fsdp, our ring on gloo": "{name: fsdp, reduce_scatter: ring, transport: gloo}",
    "fsdp, our ring on shm": "{name: fsdp, reduce_scatter: ring, transport: shm}",
    "fsdp, shard_grad_op": "{name: fsdp, sharding: shard_grad_op}",
    "fsdp, hybrid": "{name: fsdp, sharding: hybrid}",
    "pipeline": "pipeline",
    "tensor": "tensor",
}
BARE = {"plain DDP loop": [], "plain FSDP2 loop": ["--fsdp"]}
RATIOS = (
    ("ddp / plain DDP", "ddp", "plain DDP loop", 0.95),
    (
        "fsdp with gloo's reduce-scatter / plain FSDP2",
        "fsdp, gloo's reduce-scatter",
        "plain FSDP2 loop",
        0.95,
    ),
    ("fsdp with our ring / plain FSDP2", "fsdp, our ring on gloo", "plain FSDP2 loop", None),
    ("fsdp with our ring on shm / plain FSDP2", "fsdp, our ring on shm", "plain FSDP2 loop", None),
)


def ours(strategy: str, ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """A whole command in a catalog of its own."""
    samples, held_back = options.samples, 0.02
    data = f"{{name: synthetic, num_samples: {round(samples / (1 - 2 * held_back))}, input_size: 784}}"
    words = [
        f"data={data}",
        f"data.validation_fraction={held_back}",
        f"data.test_fraction={held_back}",
        f"model.hidden_sizes={[options.hidden] * options.layers}",
        f"training.epochs={options.epochs}",
        f"training.global_batch_size={options.batch}",
        "checkpoint.every_epochs=null",
        f"distributed.world_size={ranks}",
        f"distributed.strategy={strategy}",
        "distributed.threads_per_rank=1",
    ]
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as catalog:
        done = commands.run(["pipeline.py", "--catalog", catalog, "--run-id", "measured", *words])
        folder = Path(catalog) / "measured"
        record = Record(folder, done)
        lines = [read_lines(path) for path in sorted((folder / "metrics").glob("rank-*.jsonl"))]
        steps = [line for line in lines[0] if line["kind"] == "step"][3:]
        sent = [
            line["wire_bytes"]
            for rank in lines
            for line in rank
            if line["kind"] == "step" and line["step"] > 3
        ]
        ends = [line for rank in lines for line in rank if line["kind"] == "end"]
        return {
            "samples_per_second": record.recorded_rate,
            "loop_samples_per_second": record.loop_rate,
            "step_ms": 1000 * median(line["step_seconds"] for line in steps),
            "peak_rss_bytes": float(max(end["peak_rss_bytes"] for end in ends)),
            "sent_bytes": sum(sent) / len(sent),
            "loss": float(record.results["epochs"][-1]["train"]["loss"]),
        }


def bare(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """A plain loop of the same sizes; it fuses its optimizer where ours does."""
    shape = ["--train-samples", str(options.samples), "--hidden", str(options.hidden), "--fused"]
    shape += ["--layers", str(options.layers)]
    shape += [
        "--world-size",
        str(options.world_size),
        "--batch-size",
        str(options.batch // options.world_size),
    ]
    done = commands.run(["benchmarks/bare_ddp.py", *shape, "--epochs", str(options.epochs), *words])
    said = json.loads(done.output.splitlines()[-1])
    return {
        "samples_per_second": said["samples_per_second"],
        "loop_samples_per_second": said["samples_per_second"],
        "step_ms": said["step_ms"],
        "peak_rss_bytes": float(said["peak_rss_bytes"]),
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All of them, round by round."""
    jobs = {"single": lambda: ours("single", 1, options)}
    for name, words in BARE.items():
        jobs[name] = lambda words=words: bare(words, options)
    for name, strategy in STRATEGIES.items():
        if not options.only or any(word in name for word in options.only):
            jobs[name] = lambda strategy=strategy: ours(strategy, options.world_size, options)
    rounds = []
    for number in range(options.rounds):
        names = list(jobs)
        turn = number * len(names) // max(options.rounds, 1)
        found = {}
        for name in names[turn:] + names[:turn]:
            try:
                found[name] = jobs[name]()
            except SystemExit as error:  # said at once, and again by a missing row
                print(f"round {number + 1}  {name} FAILED: {error}", file=sys.stderr, flush=True)
                continue
            said = f"{found[name]['step_ms']:.2f} ms a step"
            print(f"round {number + 1}  {name}: {said}", file=sys.stderr, flush=True)
        rounds.append(found)
    whole = [name for name in jobs if all(name in found for found in rounds)]
    return [{name: found[name] for name in whole} for found in rounds]


def parameter_bytes(options: argparse.Namespace) -> int:
    """S: of all weights in fp32."""
    sizes = [784, *[options.hidden] * options.layers, 10]
    return 4 * sum(a * b + b for a, b in itertools.pairwise(sizes))


def show(rounds: list[dict[str, Any]], options: argparse.Namespace) -> str:
    whole = parameter_bytes(options)
    head = (
        f"{options.world_size} ranks on {len(os.sched_getaffinity(0))} cores, one thread each, {options.rounds} "
        f"rounds: medians. {options.samples:,} samples of 784 in batches of {options.batch}, {options.epochs} epochs, "
        f"{options.layers} hidden layers of {options.hidden}: S = {whole / 1e6:.1f} MB of weights."
    )
    rows = [["", "samples/s", "step ms", "peak MB a rank", "sent a step, S", "loss", "from single's"]]
    for name in rounds[0]:
        each = [found[name] for found in rounds]
        rate, step, peak = (
            median(one[key] for one in each) for key in ("samples_per_second", "step_ms", "peak_rss_bytes")
        )
        row = [name, f"{rate:,.0f}", f"{step:.2f}", f"{peak / 1e6:.0f}"]
        if "loss" in each[0]:
            apart = max(abs(one[name]["loss"] - one["single"]["loss"]) for one in rounds)
            sent = median(one["sent_bytes"] for one in each) / whole
            row += [f"{sent:.2f}", f"{each[0]['loss']:.5f}", f"{apart:.1e}"]
        rows.append(row + ["-"] * (len(rows[0]) - len(row)))
    goals = [["ratio of samples/s within rounds", "in the steps", "whole loop", "goal"]]
    for title, mine, plain, goal in RATIOS:
        if mine in rounds[0]:
            cells = []
            for key in ("samples_per_second", "loop_samples_per_second"):
                value = over(
                    rounds, lambda one, key=key, mine=mine, plain=plain: one[mine][key] / one[plain][key]
                )
                cells.append(f"{value['median']:.3f} ({value['least']:.3f} to {value['most']:.3f})")
            goals.append([title, *cells, f">= {goal}" if goal else ""])
    return "\n\n".join([head, table(rows), table(goals)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=12_800)
    parser.add_argument("--batch", type=int, default=256, help="over all ranks")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument(
        "--layers", type=int, default=3, help="hidden ones; a pipeline needs a layer for each rank"
    )
    parser.add_argument("--only", nargs="*", metavar="WORD", help="strategies whose name holds one of these")
    parser.add_argument("--json", action="store_true", help="every round's figures")
    options = parser.parse_args()
    commands.adopt_orphans()
    rounds = measure(options)
    print(json.dumps(rounds, indent=2) if options.json else show(rounds, options))


if __name__ == "__main__":
    main()
