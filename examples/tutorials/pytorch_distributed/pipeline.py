"""Train a model in several processes, from a flat parameters.yaml. README.md says how it works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lockstep.catalog.run import Run
from lockstep.cli.run import Face, program
from lockstep.errors import UsageError

if TYPE_CHECKING:
    from lockstep.messages import Problem
    from lockstep.parameters import Parameters
    from lockstep.plugins import Option

# What a run leaves in its folder, in the order in which one would look.
FILES = {
    "report.html": "the whole run on one page; opens in a browser, offline",
    "distributed_training_results.json": "loss and accuracy per epoch, what each rank did, the test split",
    "distributed_model_checkpoint.pt": 'weights and optimizer; torch.load(..., weights_only=True)["model"]',
    "checkpoints": "a folder per kept checkpoint; --resume continues from the newest one that verifies",
    "metrics": "a file per rank, a line per step: loss, samples, seconds of data, compute and waiting",
    "logs": "what each rank and each step of the pipeline printed",
    "distributed.json": "the plan: ranks, threads, samples per rank and step, number of steps",
    "data": "the train, validation and test split, which all ranks map into memory",
    "parameters.yaml": "the parameters as the library reads them, every default written out",
    "provenance.json": "code, packages, machine and command that made the run",
    "source.patch": "changes that git had not committed",
    "uv.lock": "the exact version of every package",
    "start": "the checkpoint of another run that this one started from",
    "run_log.json": "Runnable's own log of the steps",
    "imports.json": "SHA-256 of each module that was imported from outside of installed packages",
    "events.jsonl": "the history; each line holds the SHA-256 of the line before it",
    "manifest.json": "the seal: size and SHA-256 of every other file",
}


def keys() -> dict[str, Option]:
    """The flat keys, all of them required, each with its type and limits."""
    from pydantic import Field  # here, and not above: the fork server starts before anything is imported

    from lockstep.plugins import Option

    def whole(low: int, high: int) -> Option:
        return Option(Annotated[int, Field(ge=low, le=high)])

    return {
        "world_size": whole(1, 1024),
        "epochs": whole(1, 1_000_000),
        "batch_size": whole(1, 100_000),
        "learning_rate": Option(Annotated[float, Field(gt=0)]),
        "hidden_size": whole(1, 100_000),
        "input_size": whole(1, 1_000_000),
        "num_classes": whole(2, 1_000_000),
        "num_samples": whole(100, 1_000_000_000),
        "train_split": Option(Annotated[float, Field(ge=0.01, le=0.99)]),
    }


def to_library(flat: dict[str, Any]) -> dict[str, Any]:
    """The library's sections. What training does not get is halved into validation and test samples."""
    held_out = round((1 - flat["train_split"]) / 2, 12)
    sizes = {key: flat[key] for key in ("num_samples", "input_size", "num_classes")}
    return {
        "data": {"name": "synthetic", **sizes, "validation_fraction": held_out, "test_fraction": held_out},
        "model": {"name": "mlp", "hidden_sizes": [flat["hidden_size"]] * 2},
        "training": {
            "epochs": flat["epochs"],
            "global_batch_size": flat["batch_size"] * flat["world_size"],
            "optimizer": "adam",
            "learning_rate": flat["learning_rate"],
        },
        "distributed": {"world_size": flat["world_size"], "strategy": "ddp"},
    }


def to_flat(run: Run, before: Parameters) -> dict[str, Any]:
    """The way back, for a run that is resumed with a change."""
    from lockstep import choices, parameters

    ranks, training, sizes = before.distributed.world_size, before.training, before.model.options
    flat = {key: before.data.options.get(key) for key in ("input_size", "num_classes", "num_samples")} | {
        "world_size": ranks,
        "epochs": training.epochs,
        "batch_size": training.global_batch_size // ranks,
        "learning_rate": training.learning_rate,
        "hidden_size": next(iter(sizes.get("hidden_sizes", [])), None),
        "train_split": round(1 - 2 * before.data.test_fraction, 12),
    }
    _, problems = choices.check((), flat, keys(), ())
    if problems or parameters.from_value(to_library(flat)) != before:
        raise UsageError(
            f"run {run.run_id} was not made by this pipeline: use uv run lockstep resume {run.run_id}"
        )
    return flat


def read(file: Path | None, changes: Sequence[str], resumed: Run | None) -> Parameters:
    """A flat file, or else the run to resume, and `key=value` words, as the library's parameters."""
    from lockstep import choices, messages, overrides, parameters, strict_yaml

    if file is not None:
        document = strict_yaml.read(file)
    else:
        assert resumed is not None
        before = parameters.read(resumed.parameters)
        if not changes:
            return before
        document = strict_yaml.Document(to_flat(resumed, before), {}, str(resumed.parameters))
    flat, origins = dict(document.value), messages.Origins(document.source, document.lines)
    for change in map(overrides.parse, changes):
        key = strict_yaml.dotted(change.path)
        flat[key] = change.value
        origins.overridden.add((key,))
    values, problems = choices.check((), flat, keys(), ())
    messages.refuse([_with_advice(problem) for problem in problems], origins)
    return parameters.from_value(to_library(values), document.source)


def _with_advice(problem: Problem) -> Problem:
    """How a key of the library, which its messages speak of, is given to a run like those made here."""
    from lockstep import parameters

    key = str(problem.path[0])
    if key.partition(".")[0] not in parameters.Parameters.model_fields:
        return problem
    command = f"uv run lockstep run --parameters .catalog/RUN/parameters.yaml {key}=..."
    return replace(
        problem, text=f"{problem.text}; the library's own keys go with the file of a run: {command}"
    )


def made(run: Run) -> Iterator[str]:
    """The closing words: the run's folder, and what each thing in it is for."""
    yield f"\n{run.path} holds"
    for name, purpose in FILES.items():
        if (run.path / name).exists():
            yield f"  {name:<35}{purpose}"
    for path in sorted(run.path.glob("*.attempt-*")):
        yield f"  {path.name:<35}the same of one attempt, where there were several"


if __name__ == "__main__":
    face = Face(read, Path(__file__).with_name("parameters.yaml").absolute(), "epochs", made)
    raise SystemExit(program(face, __doc__))
