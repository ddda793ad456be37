"""How long the reading commands take over a large catalog: `uv run benchmarks/catalog.py [RUNS] [--keep FOLDER]`.

Makes a catalog of runs of true size (history, results, provenance, parameters, two ranks' metrics), most of
them finished, some failed, some killed, and times whole commands: start of Python to exit, output to a file.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import sample_run
from lockstep.catalog import listing
from lockstep.catalog.facts import figures_of
from lockstep.catalog.run import Run

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STEP = {
    "kind": "step",
    "epoch": 1,
    "loss": 0.31415926,
    "correct": 61,
    "samples": 64,
    "learning_rate": 0.001,
    "grad_norm": 0.29864010214805603,
    "step_seconds": 0.003204317999916384,
    "compute_seconds": 0.001976998999452917,
    "sync_seconds": 0.0011537000009411713,
    "data_seconds": 7.361899952229578e-05,
    "cpu_seconds": 0.003048470999999997,
    "wire_bytes": 340008,
}
COMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "list --where accuracy>0.95 --sort loss --limit 20": [
        *("list", "--where", "accuracy>0.95", "--sort", "loss", "--limit", "20")
    ],
    "list --where training.learning_rate<0.002": ["list", "--where", "training.learning_rate<0.002"],
    "list --since 7d": ["list", "--since", "7d"],
    "show latest": ["show", "latest"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="use and keep the catalog in this folder")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="lockstep-catalog-"))
    catalog = folder / ".catalog"
    try:
        if not catalog.exists():
            began = time.perf_counter()
            size = build(catalog, arguments.runs)
            print(f"{arguments.runs:,} runs of {size / 1024:,.0f} KiB in {time.perf_counter() - began:.0f} s")
            time.sleep(3)  # what changed a moment ago is not cached
        for name, words in COMMANDS.items():
            first, *later = [timed([*words, "--catalog", str(catalog)]) for _ in range(6)]
            print(f"{name:52} first {first:6.2f} s, then {min(later):.2f} to {max(later):.2f} s")
        caches = {path.name: path.stat().st_size for path in catalog.glob(".index*")}
        print("caches:", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in caches.items()))
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


def timed(words: list[str]) -> float:
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lockstep.cli", *words], stdout=output, check=True)
        return time.perf_counter() - began


def build(catalog: Path, runs: int) -> int:
    """Make the runs; returns the bytes of one."""
    template = sample_run.build(catalog)
    metrics = "".join(json.dumps(STEP | {"step": step}) + "\n" for step in range(1, 60))
    results = json.loads(template.results.read_text(encoding="utf-8"))
    history = sample_run.events(template.run_id, 2)
    texts = {
        name: (template.path / name).read_text(encoding="utf-8")
        for name in ("provenance.json", "distributed.json")
    }
    size = 0
    for number in range(runs):
        made = BEGAN + timedelta(minutes=30 * number)
        folder = catalog / f"{made:%Y%m%d-%H%M%S}-{number:06x}"
        for part in ("data", "checkpoints", "metrics", "logs"):
            (folder / part).mkdir(parents=True)
        results["evaluation"]["final"]["test"] |= {
            "accuracy": 0.9 + number % 100 / 1000,
            "loss": number % 7 / 10,
        }
        files = {
            "events.jsonl": events_of(history, folder.name, made, number, figures_of(results)),
            "distributed_training_results.json": json.dumps(results, indent=2),
            "parameters.yaml": sample_run.PARAMETERS.format(epochs=30, ranks=2),
            **{f"metrics/rank-{rank}.jsonl": metrics for rank in range(2)},
            **texts,
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        size = sum(map(len, files.values()))
        if number % 20:  # as a run does when it ends; one in twenty was killed
            listing.note(Run(folder))
    shutil.rmtree(template.path)
    return size


def events_of(
    history: list[dict[str, object]],
    run_id: str,
    made: datetime,
    number: int,
    figures: dict[str, float | None],
) -> str:
    """One run in twenty was killed, one in ten failed, the others succeeded."""
    lines = [dict(event) for event in history]
    lines[0] |= {"run_id": run_id, "tag": f"sweep-{number % 50}"}
    if number % 20:
        failed = number % 10 == 1
        cause = {"cause": "exception", "message": "ValueError: 3", "rank": 1} if failed else {}
        status = "failed" if failed else "succeeded"
        lines += [{**lines[-1], "event": "finished", "status": status, **cause, "figures": figures}]
        lines += [{**lines[-1], "event": "sealed", "manifest_sha256": "0" * 64}]
    for second, line in enumerate(lines):
        line["time"] = f"{made + timedelta(seconds=second):%Y-%m-%dT%H:%M:%S.%fZ}"
    return "".join(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
