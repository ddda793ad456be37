"""Parts of the parameters that are chosen by name and bring options of their own beside it."""

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from lockstep import plugins
from lockstep.errors import ParametersError
from lockstep.messages import Problem, allowed, unknown_key, unknown_name, wrong_value
from lockstep.plugins import REQUIRED, Option
from lockstep.strict_yaml import KeyPath

CONFIG = ConfigDict(strict=True, allow_inf_nan=False)

Kind = Literal["datasets", "models", "strategies", "transports", "compressors", "optimizers", "schedules"]

# Where something is chosen by name: what it is, and the name when nothing is said.
CHOICES: dict[tuple[str, ...], tuple[Kind, str]] = {
    ("data",): ("datasets", "digits"),
    ("model",): ("models", "mlp"),
    ("training", "optimizer"): ("optimizers", "adam"),
    ("training", "schedule"): ("schedules", "constant"),
    ("distributed", "strategy"): ("strategies", "ddp"),
}

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
_Decay = Annotated[float, Field(ge=0)]
_Betas = Annotated[list[Share], Field(min_length=2, max_length=2)]
_Epsilon = Annotated[float, Field(gt=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


def _adam(weight_decay: float) -> dict[str, Option]:
    return {
        "betas": Option(_Betas, [0.9, 0.999]),
        "epsilon": Option(_Epsilon, 1e-8),
        "weight_decay": Option(_Decay, weight_decay),
    }


_WARM_UP = {"warmup_steps": Option(Count, 0)}
_TO_A_FRACTION = {**_WARM_UP, "final_fraction": Option(_Fraction, 0.0)}
BUILT_IN: dict[str, dict[str, dict[str, Option]]] = {
    "optimizers": {
        "adam": _adam(0.0),
        "adamw": _adam(0.01),
        "sgd": {"momentum": Option(Share, 0.9), "weight_decay": Option(_Decay, 0.0)},
    },
    "schedules": {"constant": _WARM_UP, "cosine": _TO_A_FRACTION, "linear": _TO_A_FRACTION},
}


def names(kind: Kind) -> list[str]:
    """What there is to choose from."""
    return list(BUILT_IN[kind]) if kind in BUILT_IN else plugins.names(kind)


def schema(kind: Kind, name: str) -> dict[str, Option]:
    """The options of a choice. Raises ParametersError where the user's own plugin cannot be used."""
    return BUILT_IN[kind][name] if kind in BUILT_IN else plugins.schema(kind, name)


def find(path: KeyPath, kind: Kind, name: object) -> tuple[dict[str, Option] | None, list[Problem]]:
    """The options of the thing named at ``path``, or what is wrong with the name."""
    own = isinstance(name, str) and kind not in BUILT_IN and plugins.is_own(name)
    if not isinstance(name, str) or not (own or name in names(kind)):
        also = "" if kind in BUILT_IN else ", or package.module:name of your own"
        return None, [unknown_name(path, name, names(kind), also)]
    try:
        return schema(kind, name), []
    except ParametersError as error:
        return None, [Problem(path, f"{error}, allowed: {', '.join(names(kind))}, or package.module:name")]


def _nested(annotation: Any) -> Kind | None:
    """The kind of plugin that an option names, if it does."""
    metadata = getattr(annotation, "__metadata__", ())
    kinds = (mark.kind for mark in metadata if isinstance(mark, plugins.Plugin))
    return cast("Kind | None", next(kinds, None))


def _chosen(path: KeyPath, kind: Kind, value: str | dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """An option that is itself chosen by name, brought to a mapping with its name and every option."""
    given = {"name": value} if isinstance(value, str) else value
    options, problems = find((*path, "name"), kind, given.get("name"))
    if options is None:
        return {}, problems
    asked = {key: item for key, item in given.items() if key != "name"}
    values, more = check(path, asked, options, ("name",))
    return {"name": given["name"], **values}, [*problems, *more]


def check(
    path: KeyPath, given: dict[str, Any], options: dict[str, Option], beside: tuple[str, ...]
) -> tuple[dict[str, Any], list[Problem]]:
    """Every option with its value, defaults filled in, and what is wrong; ``beside`` are other keys there."""
    problems = [unknown_key((*path, key), [*beside, *options]) for key in given if key not in options]
    values = {}
    for name, option in options.items():
        value = given.get(name, option.default)
        if value is REQUIRED:
            what = allowed(option.annotation)
            problems.append(Problem((*path, name), f"found nothing, but it has no default; allowed: {what}"))
            continue
        if (kind := _nested(option.annotation)) and isinstance(value, str | dict):
            values[name], more = _chosen((*path, name), kind, value)
            problems += more
            continue
        try:
            values[name] = TypeAdapter(option.annotation, config=CONFIG).validate_python(value)
        except ValidationError:
            problems.append(wrong_value((*path, name), value, option.annotation))
        except PydanticSchemaGenerationError:
            problems.append(Problem((*path, name), f"its type {option.annotation} cannot be checked"))
    return values, problems
