"""`lockstep export`: a run in the words of others: in-toto, OpenLineage, MLflow; and its weights as one plain file."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lockstep import strict_json
from lockstep.catalog.run import Run, find
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.errors import LockstepError, UsageError
from lockstep.files import one_line, printable, set_mode, temporary_beside, write_atomically

Exporter = Callable[[Run, argparse.Namespace], int]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, latest, or a run's folder")
    parser.add_argument("--format", required=True, choices=FORMATS, help="; ".join(ABOUT.values()))
    parser.add_argument(
        "--output", metavar="PATH", type=Path, help="a file, or a folder to put it in; default: print it"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="mlflow: the server; default: MLFLOW_TRACKING_URI"
    )
    parser.add_argument("--experiment", metavar="NAME", help="mlflow: the experiment; default: lockstep")
    parser.add_argument(
        "--with-checkpoints", action="store_true", help="mlflow: upload the checkpoints and the model as well"
    )
    parser.add_argument(
        "--step", metavar="N", type=int, help="safetensors, pt: that checkpoint; default: the newest"
    )
    parser.add_argument(
        "--ema", action="store_true", help="safetensors, pt: the moving average in the place of the weights"
    )
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export one run."""
    mlflow_only = {
        "--tracking-uri": arguments.tracking_uri,
        "--experiment": arguments.experiment,
        "--with-checkpoints": arguments.with_checkpoints,
    }
    wrong = [name for name, value in mlflow_only.items() if value] if arguments.format != "mlflow" else []
    if arguments.format not in ("safetensors", "pt"):
        wrong += [
            name
            for name, value in (("--step", arguments.step is not None), ("--ema", arguments.ema))
            if value
        ]
    if arguments.format == "mlflow" and arguments.output is not None:
        wrong = ["--output"]
    if wrong:
        raise UsageError(f"{wrong[0]} does not go with --format {arguments.format}")
    return FORMATS[arguments.format](find(catalog_of(arguments), arguments.run), arguments)


def _in_toto(found: Run, arguments: argparse.Namespace) -> int:
    material = importlib.import_module("lockstep.catalog.export.material").gather(found)
    value = importlib.import_module("lockstep.catalog.export.in_toto").statement(material)
    return _deliver(strict_json.encode(value, indent=2) + "\n", found, arguments, "intoto.json")


def _openlineage(found: Run, arguments: argparse.Namespace) -> int:
    material = importlib.import_module("lockstep.catalog.export.material").gather(found)
    events = importlib.import_module("lockstep.catalog.export.openlineage").run_events(material)
    lines = "".join(strict_json.encode(event) + "\n" for event in events)
    return _deliver(lines, found, arguments, "openlineage.jsonl")


def _mlflow(found: Run, arguments: argparse.Namespace) -> int:
    exporter = importlib.import_module("lockstep.catalog.export.to_mlflow")
    told = exporter.export(
        found,
        tracking_uri=arguments.tracking_uri,
        experiment=arguments.experiment or "lockstep",
        with_checkpoints=arguments.with_checkpoints,
    )
    if arguments.json:
        output.write_json(told)
    else:
        for name, value in told.items():
            output.write_line(f"{name.replace('_', ' '):<12}{printable(str(value))}")
    return 0


def _weights(found: Run, arguments: argparse.Namespace) -> int:
    target = _target(found, arguments.output, arguments.format)
    if target is None:
        raise UsageError(f"--format {arguments.format} needs --output: a file, or a folder to put it in")
    plain = importlib.import_module("lockstep.catalog.export.plain_weights")
    checkpoint = plain.checkpoint_of(found, arguments.step)
    about = {"format": "pt", "run_id": found.run_id, "checkpoint": checkpoint.name}
    if arguments.format == "safetensors":
        count = plain.write(checkpoint, target, about, arguments.ema)
    else:
        with temporary_beside(target) as between, temporary_beside(target) as made:
            count = plain.write(checkpoint, between, about, arguments.ema)
            _as_pt(between, made)
            set_mode(made, 0o644)
            made.replace(target)
    noted = importlib.import_module("lockstep.catalog.exports")
    noted.note(found, checkpoint, target, noted.AVERAGE if arguments.ema else noted.WEIGHTS, count)
    told = {
        "path": str(target),
        "checkpoint": checkpoint.name,
        "tensors": count,
        "bytes": target.stat().st_size,
    }
    if arguments.json:
        output.write_json(told)
    else:
        output.write_line(
            f"wrote {one_line(str(target))}: {count} tensors of {checkpoint.name}, {told['bytes']:,} bytes"
        )
    return 0


def _as_pt(source: Path, target: Path) -> None:
    """By a process that may import torch: this one may not."""
    command = [sys.executable, "-P", "-m", "lockstep.engine.plain_pt", str(source), str(target)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise LockstepError(f"the .pt could not be written: {last[0]}")


# A format is one function here and a module of its own, imported when it is asked for.
FORMATS: dict[str, Exporter] = {
    "in-toto": _in_toto,
    "openlineage": _openlineage,
    "mlflow": _mlflow,
    "safetensors": _weights,
    "pt": _weights,
}
ABOUT = {
    "in-toto": "in-toto: a statement with SLSA provenance, its subjects the checkpoints",
    "openlineage": "openlineage: run events, a JSON value a line",
    "mlflow": "mlflow: to a tracking server (needs the extra mlflow)",
    "safetensors": "safetensors: the weights of a checkpoint as one plain file",
    "pt": "pt: the same as a state dict that torch.load takes",
}


def _deliver(text: str, found: Run, arguments: argparse.Namespace, ending: str) -> int:
    """Print, or write in one step; never into the record itself, whose seal covers every file."""
    target = _target(found, arguments.output, ending)
    if target is None:
        output.write_line(text.removesuffix("\n"))
        return 0
    write_atomically(target, text)
    output.write_line(f"wrote {one_line(str(target))}")
    return 0


def _target(found: Run, target: Path | None, ending: str) -> Path | None:
    """Where to write; None without --output. Raises UsageError for a place where nothing may be written."""
    if target is None:
        return None
    if target.is_dir():
        target = target / f"{found.run_id}.{ending}"
    if target.resolve().is_relative_to(found.path):
        raise UsageError(f"--output {target} is inside the run's own folder, which is sealed: choose another")
    if not target.parent.is_dir():
        raise UsageError(f"--output {target}: there is no folder {target.parent}")
    if target.exists() and not target.is_file():
        raise UsageError(f"--output {target} is there and is no file")
    return target
