"""The parameters of a run: how a file and overrides become one value, and back. Each key stands in ``sections``.

    read(path, overrides)    a file and the command line -> Parameters
    from_value(value)        a plain mapping (what a run's own parameters.yaml holds) -> Parameters
    dump(parameters)         -> YAML text with every default written out, which `read` takes back

Whatever cannot be accepted is a ParametersError that names file, line and key.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from lockstep import choices, overrides, plugins, strict_yaml, yaml_dump
from lockstep.choices import CHOICES
from lockstep.messages import COMMAND_LINE, Origins, Problem, not_allowed, refuse, unknown_key, wrong_value
from lockstep.sections import (
    Augmentation,
    Checkpoint,
    Choice,
    Data,
    Distributed,
    Model,
    Parameters,
    Section,
    Training,
)
from lockstep.strict_yaml import KeyPath

__all__ = [
    "Augmentation", "Checkpoint", "Choice", "Data", "Distributed", "Model", "Parameters", "Section", "Training",
    "difference", "dump", "from_value", "read",
]  # fmt: skip


def read(path: Path | None, arguments: Sequence[str] = ()) -> Parameters:
    """Read a file (None: all defaults) and the overrides of the command line. Raises ParametersError."""
    plugins.importable_from(Path.cwd())
    document = strict_yaml.read(path) if path else strict_yaml.Document({}, {}, COMMAND_LINE)
    origins = Origins(document.source, document.lines)
    return _build(document.value, [overrides.parse(text) for text in arguments], origins)


def from_value(value: Mapping[str, Any], source: str = "parameters") -> Parameters:
    """Build from a plain mapping. Raises ParametersError."""
    return _build(dict(value), [], Origins(source))


def dump(parameters: Parameters) -> str:
    """YAML text with every default written out, that `read` takes back to an equal value."""
    return yaml_dump.text(parameters.to_value())


def difference(a: Parameters, b: Parameters) -> list[str]:
    """Where two differ: dotted keys with both values, such as `training.epochs: 30 -> 2`."""
    left, right = _leaves(a.to_value()), _leaves(b.to_value())
    keys = [*left, *(key for key in right if key not in left)]
    return [
        f"{key}: {left.get(key, 'absent')} -> {right.get(key, 'absent')}"
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _build(given: Mapping[str, Any], changes: Sequence[overrides.Override], origins: Origins) -> Parameters:
    tree = copy.deepcopy(dict(given))
    overrides.expand(tree)
    problems = overrides.apply(tree, changes, origins, {path: _beside(path) for path in CHOICES})
    for path in CHOICES:
        problems += _resolve(tree, path)
    saved = tree.get("checkpoint")
    if isinstance(saved, dict) and saved.get("every_steps") is not None:
        saved.setdefault("every_epochs", None)
    try:
        parameters = Parameters.model_validate(tree)
    except ValidationError as error:
        problems += [_problem(tuple(item["loc"]), item["type"], item["input"]) for item in error.errors()]
        parameters = None
    if parameters is not None and not problems:
        problems += _conflicts(parameters)
    refuse(
        {problem.path: problem for problem in problems}.values(), origins
    )  # one a key: unions report twice
    assert parameters is not None
    return parameters


def _beside(path: KeyPath) -> tuple[str, ...]:
    """The keys of a choice that are not options of what is chosen."""
    models: dict[KeyPath, type[Choice]] = {("data",): Data, ("model",): Model}
    model = models.get(path, Choice)
    return tuple(key for key in model.model_fields if key != "options")


def _resolve(tree: dict[str, Any], path: tuple[str, ...]) -> list[Problem]:
    """Bring one choice into the shape of its model: name, what stands beside it, and checked options."""
    kind, default = CHOICES[path]
    parent: Any = tree
    for key in path[:-1]:
        parent = parent.setdefault(key, {})
        if not isinstance(parent, dict):
            return []  # the section is reported
    given = parent.get(path[-1], {})
    if not isinstance(given, dict):
        parent[path[-1]] = {"name": default, "options": {}}
        return [not_allowed(path, given, f"{', '.join(choices.names(kind))}, or a mapping with its name")]
    beside = _beside(path)
    name = given.get("name", default)
    schema, problems = choices.find((*path, "name"), kind, name)
    values: dict[str, Any] = {}
    if schema is not None:
        asked = {key: value for key, value in given.items() if key not in beside}
        values, more = choices.check(path, asked, schema, beside)
        problems += more
    kept = {key: given[key] for key in beside if key in given}
    parent[path[-1]] = {**kept, "name": name if isinstance(name, str) else default, "options": values}
    return problems


def _problem(location: KeyPath, kind: str, value: object) -> Problem:
    """What pydantic found, in our words: only the place of its error is used, and the type there."""
    model: type[BaseModel] = Parameters
    for depth, key in enumerate(location, start=1):
        field = model.model_fields.get(str(key))
        if field is None:
            assert kind == "extra_forbidden", (location, kind)
            return unknown_key(location[:depth], model.model_fields, _sections())
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return wrong_value(location[:depth], value, inner, field.metadata)
        model = inner
    return not_allowed(location, value, f"a mapping with the keys {', '.join(model.model_fields)}")


def _sections() -> dict[str, str]:
    """Which section a key belongs to, for those who wrote it at the wrong place."""
    return {
        key: f"{name}.{key}"
        for name, section in Parameters.model_fields.items()
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section)
        for key in section.annotation.model_fields
        if key not in Choice.model_fields
    }


def _conflicts(parameters: Parameters) -> list[Problem]:
    """Values that are each allowed, but not together."""
    data, ranks, saved = parameters.data, parameters.distributed.world_size, parameters.checkpoint
    batch, strategy = parameters.training.global_batch_size, parameters.distributed.strategy.name
    problems = []
    if data.validation_fraction + data.test_fraction >= 1:
        text = f"found {data.test_fraction} beside data.validation_fraction {data.validation_fraction}"
        problems.append(Problem(("data", "test_fraction"), f"{text}, allowed: less than 1 together"))
    if ranks > batch:
        text = f"found {ranks}, allowed: at most training.global_batch_size, which is {batch}"
        advice = f"set distributed.world_size={batch} or training.global_batch_size={ranks}"
        problems.append(Problem(("distributed", "world_size"), f"{text}; {advice}"))
    if strategy == "single" and ranks != 1:
        text = f"found {ranks}, allowed with the strategy single: 1"
        advice = "set distributed.world_size=1 or another distributed.strategy"
        problems.append(Problem(("distributed", "world_size"), f"{text}; {advice}"))
    options = parameters.distributed.strategy.options
    if options.get("reduction") == "invariant" and options.get("compressor") is not None:
        text = f"found {options['compressor']['name']} beside reduction: invariant, which it contradicts"
        path = ("distributed", "strategy", "compressor")
        problems.append(Problem(path, f"{text}, allowed: null; or set reduction to fast"))
    if saved.every_epochs is not None and saved.every_steps is not None:
        text = f"found {saved.every_steps} beside checkpoint.every_epochs {saved.every_epochs}"
        advice = "set the other to null"
        problems.append(Problem(("checkpoint", "every_steps"), f"{text}, allowed: one of the two; {advice}"))
    return problems


def _leaves(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    leaves: dict[str, object] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves
