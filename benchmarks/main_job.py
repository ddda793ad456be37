"""The main job against a plain loop of DDP: `uv run benchmarks/main_job.py [--rounds 3] [--profile]`.

Runs `bare_ddp.py` and our whole command in turn, on the same number of samples, model and optimizer, and
prints what our loop and our whole command cost beside it. Compare figures of one run of this file only: the
machine's load, clock and caches are others by the next one. Ratios are taken within a round; medians shown.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
from commands import ROOT
from tables import show, summary
from timeline import Record

# 20,000 samples of which 16,000 train, 64 a rank, two hidden layers of 256: the tutorial's parameters.
PARAMETERS = """\
data: {{name: synthetic, num_samples: 20000, input_size: 784, num_classes: 10,
        validation_fraction: 0.1, test_fraction: 0.1}}
model: {{name: mlp, hidden_sizes: [256, 256]}}
training: {{epochs: {epochs}, global_batch_size: {batch}, optimizer: adam, learning_rate: 0.001}}
distributed: {{world_size: {ranks}, strategy: ddp, threads_per_rank: 1}}
"""


def parameters(ranks: int, epochs: int) -> str:
    """Our parameter file for what the bare script does."""
    return PARAMETERS.format(epochs=epochs, batch=64 * ranks, ranks=ranks)


def bare(options: argparse.Namespace) -> dict[str, Any]:
    words = ["--world-size", str(options.world_size), "--epochs", str(options.epochs)]
    done = commands.run(["benchmarks/bare_ddp.py", *words, *(["--fused"] if options.fused else [])])
    said = json.loads(done.output.splitlines()[-1])
    return {
        "in_loop_samples_per_second": said["samples_per_second"],
        "step_cpu_ms": said["step_cpu_ms"],
        "first_step_seconds": said["first_step_seconds"],
        "startup_share": said["first_step_seconds"] / done.seconds,
        **_whole(done),
    }


def ours(arguments: list[str]) -> dict[str, Any]:
    """A whole command in a catalog of its own, so that nothing is prepared already."""
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as catalog:
        done = commands.run(["pipeline.py", "--catalog", catalog, "--run-id", "measured", *arguments])
        record = Record(Path(catalog) / "measured", done)
        return {
            "recorded_samples_per_second": record.recorded_rate,
            "in_step_samples_per_second": record.in_step_rate,
            "in_loop_samples_per_second": record.loop_rate,
            "step_cpu_ms": record.step_cpu_ms,
            "first_step_seconds": record.first_step_seconds,
            "startup_share": record.startup_share,
            "accuracy": record.accuracy,
            "phases": record.phases(),
            **_whole(done),
        }


def _whole(done: commands.Finished) -> dict[str, Any]:
    return {
        "seconds": done.seconds,
        "core_seconds": done.core_seconds,
        "load": done.load,
        "busy_cores": done.busy_cores,
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of all commands; each round begins with another one, so that none always runs after the same."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parameters.yaml"
        file.write_text(parameters(options.world_size, options.epochs), encoding="utf-8")
        kinds: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("bare", lambda: bare(options)),
            ("ours", lambda: ours(["--parameters", str(file)])),
            (
                "allreduce",  # our collectives on shared memory, in the place of ddp
                lambda: ours(["--parameters", str(file), "distributed.strategy=allreduce"]),
            ),
            ("digits", lambda: ours(["--parameters", str(ROOT / "parameters.yaml")])),
        ]
        rounds = []
        for number in range(options.rounds):
            turn = number % len(kinds)
            found = {}
            for name, command in kinds[turn:] + kinds[:turn]:
                found[name] = command()
                print(
                    f"round {number + 1} {name}: {found[name]['seconds']:.1f} s", file=sys.stderr, flush=True
                )
            rounds.append(found)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument(
        "--fused", action="store_true", help="give the bare loop the fused Adam that ours uses"
    )
    parser.add_argument("--json", action="store_true", help="every round's figures and the summary, as JSON")
    parser.add_argument("--profile", action="store_true", help="only: where a rank's step time goes")
    options = parser.parse_args()
    if options.profile:
        import step_profile

        print(step_profile.measured(options.world_size, options.epochs))
        return
    commands.adopt_orphans()
    rounds = measure(options)
    found = summary(rounds)
    print(json.dumps({"rounds": rounds, **found}, indent=1) if options.json else show(found, options))


if __name__ == "__main__":
    main()
