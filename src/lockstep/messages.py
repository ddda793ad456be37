"""What a person reads when a parameter cannot be accepted: what was found, what is allowed, what is near."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lockstep.errors import ParametersError
from lockstep.files import printable
from lockstep.strict_yaml import KeyPath, dotted, shortened

MAX_PROBLEMS = 10
COMMAND_LINE = "command line"

_SINGLE: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "any value",
}
_SINGLE |= {NoneType: "null", None: "null", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the key, and the rest of the sentence."""

    path: KeyPath
    text: str


@dataclass
class Origins:
    """Where each value comes from: a line of the file, or the command line."""

    source: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overridden: set[KeyPath] = field(default_factory=set)

    def place(self, path: KeyPath) -> tuple[str, int]:
        """The source and line (0 where it has none) of the longest part of a path that has one."""
        parts = [path[:length] for length in range(len(path), 0, -1)]
        if not self.overridden.isdisjoint(parts):
            return COMMAND_LINE, 0
        if path not in self.lines and any(given[: len(path)] == path for given in self.overridden):
            return COMMAND_LINE, 0  # a section that only an override speaks of
        for part in parts:
            if part in self.lines:
                return self.source, self.lines[part]
        return self.source, 0


def refuse(problems: Iterable[Problem], origins: Origins) -> None:
    """Raise one ParametersError that carries every problem, a line each, in the order of the file."""
    placed = sorted(((*origins.place(problem.path), problem) for problem in problems), key=_order)
    if not placed:
        return
    texts = []
    for source, line, problem in placed[:MAX_PROBLEMS]:
        where = f"{source}:{line}" if line else source
        key = f" {dotted(problem.path)}:" if problem.path else ""
        texts.append(f"{where}:{key} {problem.text}")
    if len(placed) > MAX_PROBLEMS:
        texts.append(f"and {len(placed) - MAX_PROBLEMS} more")
    raise ParametersError("\n".join(texts))


def _order(placed: tuple[str, int, Problem]) -> tuple[bool, int]:
    return placed[0] == COMMAND_LINE, placed[1]


def not_allowed(path: KeyPath, value: object, allowed_text: str) -> Problem:
    """A value that is not one of those allowed."""
    return Problem(path, f"found {found(value)}, allowed: {allowed_text}")


def wrong_value(path: KeyPath, value: object, annotation: Any, metadata: Iterable[Any] = ()) -> Problem:
    """A value that its type does not accept."""
    if get_origin(annotation) is Literal:
        return unknown_name(path, value, [str(choice) for choice in get_args(annotation)])
    told = allowed(annotation, metadata)
    if isinstance(value, bool | int | float) and re.search(r"\btext\b", told):
        told += """ (quoted, it is text: '"..."' on the command line)"""
    return not_allowed(path, value, told)


def unknown_key(path: KeyPath, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> Problem:
    """A key that is not there, and the nearest that is; ``elsewhere`` says which section a key is of."""
    keys = list(known)
    key = str(path[-1])
    near = nearest(key, keys) or (elsewhere or {}).get(key)
    allowed_text = ", ".join(keys) or "no keys"
    return Problem(path, f"found an unknown key, allowed: {allowed_text}{did_you_mean(near)}")


def unknown_name(path: KeyPath, value: object, names: Iterable[str], also: str = "") -> Problem:
    """A name that is none of the choices, with the nearest that is."""
    choices = list(names)
    near = nearest(value, choices) if isinstance(value, str) else None
    return not_allowed(path, value, f"{', '.join(choices)}{also}{did_you_mean(near)}")


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant."""
    return next(iter(difflib.get_close_matches(word[:100], list(candidates), n=1)), None)


def did_you_mean(near: str | None) -> str:
    """The question at the end of a message, or nothing."""
    return f"; did you mean {near}?" if near else ""


def found(value: object) -> str:
    """A value and its kind, as the file's author knows them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    kinds = {int: "a whole number", float: "a float", str: "text", list: "a list", dict: "a mapping"}
    return f"{printable(shortened(repr(value)))} ({kinds.get(type(value), type(value).__name__)})"


def allowed(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a type accepts, in words: ``Annotated[int, Field(ge=1)]`` is "a whole number of 1 or more"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return allowed(arguments[0], [*annotation.__metadata__, *metadata])
    if origin in (Union, UnionType):
        return ", or ".join(allowed(part, metadata if part is not NoneType else ()) for part in arguments)
    if origin is Literal:
        return ", ".join(str(part) if part is not None else "null" for part in arguments)
    limits = _limits(metadata)
    if annotation in (int, float):
        return f"{_SINGLE[annotation]}{_range(limits)}"
    size = (
        _range({"ge": limits.get("min_length"), "le": limits.get("max_length")}).strip().removeprefix("of ")
    )
    if origin in (list, dict):
        each = f"each value {allowed(arguments[-1])}"
        return f"{_SINGLE[origin]}{size and f' with {size} values'}, {each}"
    return f"{_SINGLE.get(annotation, 'another kind of value')}{size and f' ({size} characters)'}"


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for item in metadata:
        limits |= _limits(getattr(item, "metadata", ()))  # a Field inside Annotated holds its own
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(item, name, None) is not None:
                limits[name] = getattr(item, name)
    return limits


def _range(limits: Mapping[str, Any]) -> str:
    low, high = limits.get("ge"), limits.get("le")
    if low is not None and low == high:
        return f" {_number(low)}"
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    words = {"ge": "of {} or more", "gt": "above {}", "le": "of at most {}", "lt": "below {}"}
    parts = [
        text.format(_number(limits[name])) for name, text in words.items() if limits.get(name) is not None
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
