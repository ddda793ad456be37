"""Every parameter of a run: its type, its limits, its default, and how a file and overrides become one value.

    read(path, overrides)    a file and the command line -> Parameters
    from_value(value)        a plain mapping (what a run's own parameters.yaml holds) -> Parameters
    dump(parameters)         -> YAML text with every default written out, which `read` takes back

Whatever cannot be accepted is a ParametersError that names file, line and key.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep import choices, overrides, plugins, strict_yaml, yaml_dump
from lockstep.choices import CHOICES, CONFIG, Share
from lockstep.messages import COMMAND_LINE, Origins, Problem, not_allowed, refuse, unknown_key, wrong_value
from lockstep.strict_yaml import KeyPath

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Section(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", **CONFIG)


class Choice(Section):
    """Something chosen by name, with every option of it, defaults included."""

    name: str
    options: dict[str, Any]


class Augmentation(Section):
    """How training images are varied: a function of (seed, epoch, sample), so the same at any world size."""

    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 0  # pixels added on each side before the crop
    flip: bool = False  # mirror half of the images, left to right
    crop_scale: (
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] | None
    ) = None  # an image folder's: cut out this share of the image, of another shape, and scale that up

    @property
    def on_pixels(self) -> bool:
        """Whether anything is done to an image that is read already."""
        return bool(self.crop_padding or self.flip)


class Data(Choice):
    """The dataset, how much of it is kept from training, and how what is left is varied."""

    validation_fraction: Share = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    augmentation: Augmentation = Augmentation()


class Model(Choice):
    """The model, and the weights that it starts from: a file with a plain state dict, or null for random ones."""

    weights: str | None = None


class Training(Section):
    """What is optimized, how, and for how long."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    global_batch_size: Count = 128  # samples per step over all ranks
    optimizer: Choice
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    schedule: Choice
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    micro_batch_size: Count | None = None  # samples in one pass of a rank; null: its whole share
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = (
        "fp32"  # the last two: passes only, weights stay fp32
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # of a moving average of the weights; null: none
    )
    channels_last: bool = False  # images and their weights with the channels innermost
    tf32: bool = False  # on a GPU: faster products of fp32, with 10 bits where there were 23
    activation_checkpointing: bool = False  # blocks compute their activations again in the backward pass
    compile: bool = False  # torch.compile, which takes a while before the first step
    digest_every: Count = 50  # steps between fingerprints of the weights


class Distributed(Section):
    """How the work is shared among processes."""

    world_size: Annotated[int, Field(ge=1, le=1024)] = 2
    strategy: Choice
    launcher: Literal["spawn"] = "spawn"
    start_method: Literal["forkserver", "spawn"] = "forkserver"
    device: Literal["cpu", "cuda", "auto"] = "cpu"  # auto: cuda where there is a GPU for each rank
    backend: Literal["gloo"] = "gloo"  # between processors; between GPUs it is NCCL
    threads_per_rank: Annotated[int, Field(ge=1, le=1024)] | None = None  # null: cores / ranks
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class Checkpoint(Section):
    """When the state is saved; both null means only at the end."""

    every_epochs: Count | None = 1
    every_steps: Count | None = None
    keep: Annotated[int, Field(ge=2, le=1_000_000_000)] = 3
    closing_limit_gb: Annotated[float, Field(ge=0)] = 8.0  # of tensors that no rank holds whole: above it, no .pt


class Parameters(Section):
    """All parameters of a run."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 42
    data: Data
    model: Model
    training: Training
    distributed: Distributed
    checkpoint: Checkpoint = Checkpoint()

    def to_value(self) -> dict[str, Any]:
        """A plain mapping, every default written out; a choice has its name first, then its options."""
        value = _plain(self)
        assert isinstance(value, dict)
        return value


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


def _plain(value: object) -> object:
    if isinstance(value, Choice):
        beside = {key: _plain(getattr(value, key)) for key in type(value).model_fields if key != "options"}
        return {"name": value.name, **beside, **copy.deepcopy(value.options)}
    if isinstance(value, Section):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    return value


def _leaves(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    leaves: dict[str, object] = {}
    for key, item in value.items():
        leaves |= _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    return leaves
