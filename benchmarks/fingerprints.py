"""What fingerprints cost: `uv run benchmarks/fingerprints.py [--rounds 3]`.

The tutorial's training with fingerprints every 50 steps and, in turn, with none. Two figures: the share of the
ranks' time in steps that they themselves say went into fingerprints, and the time of all steps beside that of the
run of the same round that took none. The second holds the noise of the machine; the first does not.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import commands
import main_job

NEVER = 1_000_000_000


def measured(catalog: Path, file: Path, name: str, every: int) -> dict[str, Any]:
    """Seconds in steps, and in fingerprints, over all ranks of one run."""
    words = ["--catalog", str(catalog), "--run-id", name, "--parameters", str(file)]
    commands.run(["pipeline.py", *words, f"training.digest_every={every}"])
    steps, prints, count = 0.0, 0.0, 0
    for path in (catalog / name / "metrics").glob("rank-*.jsonl"):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["kind"] == "step":
                steps += line["step_seconds"]
                prints += line.get("digest_seconds", 0.0)
                count += "digest_seconds" in line
    return {"steps": steps, "prints": prints, "count": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--world-size", type=int, default=2)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    shares, ratios, each = [], [], []
    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as folder:
        file = Path(folder) / "parameters.yaml"
        file.write_text(main_job.parameters(options.world_size, options.epochs), encoding="utf-8")
        for number in range(options.rounds):
            order = [options.every, NEVER] if number % 2 else [NEVER, options.every]
            found = {
                every: measured(Path(folder) / "c", file, f"r{number}-{every}", every) for every in order
            }
            with_, without = found[options.every], found[NEVER]
            shares.append(with_["prints"] / with_["steps"])
            each.append(1e3 * with_["prints"] / with_["count"])
            ratios.append(with_["steps"] / without["steps"])
    print(
        f"share of the time in steps  {statistics.median(shares):.2%}  ({min(shares):.2%} to {max(shares):.2%})"
    )
    print(f"one rank's fingerprints     {statistics.median(each):.2f} ms")
    print(
        f"steps with / without        {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
