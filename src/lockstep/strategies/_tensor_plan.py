"""Which layers of a model are cut across ranks, and which way: said by the model, beside its code.

Any module may have an attribute ``tensor_plan``, a mapping from names of its parts to a way, or a function without
arguments that returns one:

- ``colwise``: a Linear cut by output, so that each rank has some of the columns of what it returns (``colwise:K``
  keeps groups of K columns, such as heads, whole);
- ``rowwise``: a Linear cut by input, which takes what colwise layers return; the ranks' results are summed;
- ``shared``: a module whose input goes to several colwise layers: their gradients are summed in one go.

Between the two everything must work column by column (activations, dropout, whole heads). Shoeybi et al.,
"Megatron-LM", arXiv 1909.08053. What no plan names is held whole by every rank.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lockstep.errors import RunFailed

_WAY = re.compile(r"(colwise)(?::([1-9][0-9]{0,8}))?|(rowwise)|(shared)")


@dataclass(frozen=True)
class Way:
    """How one module is treated; ``group`` is how many columns stay together."""

    kind: str
    group: int = 1


def plan_of(module: nn.Module) -> dict[str, Way]:
    """The plans of all modules together, by the names of the whole. Raises RunFailed for none, or one that is wrong."""
    found: dict[str, Way] = {}
    for prefix, part in module.named_modules():
        own = getattr(part, "tensor_plan", None)
        if callable(own) and not isinstance(own, nn.Module):
            own = own()
        if own is None:
            continue
        if not isinstance(own, Mapping):
            raise RunFailed(
                f"tensor_plan of {_called(prefix)} is {type(own).__name__}, allowed: a mapping of names to ways"
            )
        for name, way in own.items():
            whole = ".".join(each for each in (prefix, str(name)) if each)
            found[whole] = _checked(module, whole, way)
    if not any(way.kind == "colwise" for way in found.values()):
        raise RunFailed(
            f"tensor: the model is {type(module).__name__} without a plan of which layers to cut; models that have one "
            "are mlp (with two layers or more), vit and gpt. For your own, give the module an attribute tensor_plan, "
            'such as {"up": "colwise", "down": "rowwise"}, or set distributed.strategy to fsdp, which needs none'
        )
    return found


def _called(name: str) -> str:
    return name or "the model"


def _checked(module: nn.Module, name: str, way: object) -> Way:
    match = _WAY.fullmatch(way) if isinstance(way, str) else None
    if match is None:
        raise RunFailed(
            f"tensor_plan: found {way!r} for {_called(name)}, allowed: colwise, colwise:<columns that stay together>, "
            "rowwise, shared"
        )
    try:
        part = module.get_submodule(name)
    except AttributeError:
        raise RunFailed(f"tensor_plan: the model has no part {name}") from None
    if match[4]:
        return Way("shared")
    if not isinstance(part, nn.Linear):
        raise RunFailed(
            f"tensor_plan: {name} is {type(part).__name__}, and colwise and rowwise are for Linear layers"
        )
    return Way("rowwise") if match[3] else Way("colwise", int(match[2] or 1))


def check_sizes(module: nn.Module, plan: Mapping[str, Way], ranks: int) -> None:
    """Raise RunFailed where a layer cannot be cut into equal parts, saying what could."""
    for name, way in plan.items():
        part = module.get_submodule(name)
        if not isinstance(part, nn.Linear):
            continue
        size = part.out_features if way.kind == "colwise" else part.in_features
        pieces, left = divmod(size, way.group)
        if left:
            raise RunFailed(f"tensor_plan: {name} has {size} columns, which are not groups of {way.group}")
        if pieces % ranks:
            what = f"{size} {'outputs' if way.kind == 'colwise' else 'inputs'}"
            if way.group > 1:
                what += f", {pieces} groups of {way.group}"
            fitting = ", ".join(str(count) for count in range(1, min(pieces, 64) + 1) if pieces % count == 0)
            raise RunFailed(
                f"tensor: {name} has {what}, which {ranks} ranks cannot share equally; allowed: {fitting} ranks "
                "(distributed.world_size / strategy.data_parallel), or a model whose sizes are multiples of "
                f"{ranks * way.group}"
            )


def held(module: nn.Module, plan: Mapping[str, Way], ranks: int) -> dict[str, int]:
    """How many elements of each parameter a rank holds."""
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    for name, way in plan.items():
        if way.kind == "shared":
            continue
        for key in ("weight", "bias") if way.kind == "colwise" else ("weight",):
            if f"{name}.{key}" in counts:
                counts[f"{name}.{key}"] //= ranks
    return counts


def tied(module: nn.Module, plan: Mapping[str, Way]) -> list[list[tuple[str, str]]]:
    """The (module, key) places of each parameter that stands in several and is cut in them, to be tied again.

    Raises RunFailed where they are not cut alike: ranks would hold parts of one and the whole of the other.
    """
    places: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for name, part in module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            places.setdefault(parameter, []).append((name, key))
    found = []
    for each in places.values():
        ways = {
            (plan[name].kind if name in plan and plan[name].kind != "shared" else "whole") for name, _ in each
        }
        if len(ways) > 1:
            what = " and ".join(f"{name}.{key}" for name, key in each)
            raise RunFailed(
                f"tensor_plan: {what} are one parameter, and the plan treats them in different ways "
                f"({', '.join(sorted(ways))}); allowed: the same way for all places of a parameter, or no way for any"
            )
        if len(each) > 1 and ways != {"whole"}:
            found.append(each)
    return found


def tie(module: nn.Module, ties: list[list[tuple[str, str]]]) -> None:
    """Put the first place's parameter into the others: cutting made each a parameter of its own."""
    for (first, key), *others in ties:
        parameter = getattr(module.get_submodule(first), key)
        for name, other in others:
            module.get_submodule(name).register_parameter(other, parameter)
