"""Dotted overrides of the command line: `training.epochs=2` replaces what the file says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockstep import choices, strict_yaml
from lockstep.choices import CHOICES
from lockstep.errors import ParametersError
from lockstep.messages import COMMAND_LINE, Origins, Problem
from lockstep.strict_yaml import KeyPath, dotted, shortened

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class Override:
    """One `key.path=value`."""

    path: tuple[str, ...]
    value: Any


def parse(text: str) -> Override:
    """One argument of the command line. Raises ParametersError."""
    key, equals, value = text.partition("=")
    if not equals or not _KEY.fullmatch(key) or len(key) > 500:
        found = shortened(repr(text))
        raise ParametersError(
            f"{COMMAND_LINE}: found {found}, allowed: key.path=value, such as training.epochs=2"
        )
    path = tuple(key.split("."))
    if not value:  # most likely a variable of the shell that is not set
        raise ParametersError(
            f"{COMMAND_LINE}: {dotted(path)}: found null, as nothing stands behind the =; allowed: a value, "
            f"{key}=null, or an empty text, {key}='\"\"'"
        )
    parsed = strict_yaml.parse_value(value, f"{COMMAND_LINE}: {dotted(path)}")
    if path in CHOICES and isinstance(parsed, str):
        path = (*path, "name")  # the short form: data=synthetic
    return Override(path, parsed)


def expand(tree: dict[str, Any]) -> None:
    """Write short forms out: `strategy: ddp` becomes `strategy: {name: ddp}`."""
    for path in CHOICES:
        parent = _at(tree, path[:-1])
        if isinstance(parent, dict) and isinstance(parent.get(path[-1]), str):
            parent[path[-1]] = {"name": parent[path[-1]]}


def apply(
    tree: dict[str, Any],
    overrides: Sequence[Override],
    origins: Origins,
    beside: dict[KeyPath, tuple[str, ...]],
) -> list[Problem]:
    """Set each override in the tree, whose short forms are expanded, and return what cannot be set.

    ``beside`` are the keys of a choice that stay when its name changes.
    """
    _forget_former_options(tree, overrides, beside)
    _forget_former_checkpoints(tree, overrides)
    problems = []
    for override in sorted(overrides, key=_whole_before_parts):
        origins.overridden.add(override.path)
        parent: Any = tree
        for depth, key in enumerate(override.path[:-1], start=1):
            if isinstance(parent.get(key), str) and _below_a_choice(override.path[:depth]):
                parent[key] = {"name": parent[key]}  # compressor=topk compressor.ratio=0.01
            parent = parent.setdefault(key, {})
            if not isinstance(parent, dict):
                section = dotted(override.path[:depth])
                problems.append(
                    Problem(override.path, f"found a key below {section}, which is a single value")
                )
                break
        else:
            parent[override.path[-1]] = override.value
    return problems


def _below_a_choice(path: KeyPath) -> bool:
    """Whether a path is an option of something chosen by name: one that may itself be chosen by name."""
    return any(path[: len(choice)] == choice and len(path) > len(choice) for choice in CHOICES)


def _whole_before_parts(override: Override) -> int:
    """A sort key: such an option itself comes before what is beside its name, wherever they stand."""
    return len(override.path) if _below_a_choice(override.path) else 0


def _forget_former_options(
    tree: dict[str, Any], overrides: Sequence[Override], beside: dict[KeyPath, tuple[str, ...]]
) -> None:
    """When the command line names another plugin, what the file says of the former one no longer applies."""
    for path, (kind, default) in CHOICES.items():
        named = [override.value for override in overrides if override.path == (*path, "name")]
        given = _at(tree, path)
        if not named or not isinstance(given, dict) or given.get("name", default) == named[-1]:
            continue
        former, _ = choices.find(path, kind, given.get("name", default))
        new, _ = choices.find(path, kind, named[-1])
        if new is None:
            continue  # the name is reported
        keep = {"name", *new, *beside[path]}
        for key in [key for key in given if key not in keep and (former is None or key in former)]:
            del given[key]


def _forget_former_checkpoints(tree: dict[str, Any], overrides: Sequence[Override]) -> None:
    """`every_epochs` and `every_steps` exclude each other: the one given here replaces the file's other."""
    section = tree.get("checkpoint")
    named = {override.path[1:] for override in overrides if override.path[:1] == ("checkpoint",)}
    for one, other in (("every_steps", "every_epochs"), ("every_epochs", "every_steps")):
        if isinstance(section, dict) and (one,) in named and (other,) not in named:
            section.pop(other, None)


def _at(tree: Any, path: KeyPath) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
