"""Cutting a model into stages: which parts it goes through, what each costs, and which stage has which names."""

import collections
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lockstep.errors import RunFailed


@dataclass(frozen=True)
class Unit:
    """What is never cut: a part with weights to train, and those without that follow it (or lead the first)."""

    names: tuple[str, ...]
    parts: tuple[nn.Module, ...]
    label: str  # what its random draws are keyed by: another one for each use of a part that is used again

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(parameter.numel() for part in self.parts for parameter in part.parameters())

    def __call__(self, value: Tensor) -> Tensor:
        for part in self.parts:
            value = part(value)
        return value


def units(module: nn.Module) -> list[Unit]:
    """The units of a model that is a sequence: a Sequential, or one whose ``blocks()`` lists its parts in order.

    Raises RunFailed for another, and where a parameter stands outside of the parts.
    """
    chain = _chain(module)
    inside = {id(p) for _, part in chain for p in (*part.parameters(), *part.buffers())}
    named = (*module.named_parameters(), *module.named_buffers())
    if outside := [name for name, tensor in named if id(tensor) not in inside]:
        raise RunFailed(
            f"pipeline: {', '.join(outside[:3])} belongs to none of the model's parts, so no stage would have it; "
            "blocks() must list every part that the forward pass goes through"
        )
    heads = [place for place, (_, part) in enumerate(chain) if _trains(part)]
    starts = [0, *heads[1:], len(chain)]
    found, uses = [], collections.Counter[str]()
    for start, stop in itertools.pairwise(starts):
        names, parts = zip(*chain[start:stop], strict=True)
        uses[names[0]] += 1
        found.append(Unit(names, parts, names[0] + f"#{uses[names[0]]}" * (uses[names[0]] > 1)))
    return found


def _trains(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _chain(module: nn.Module) -> list[tuple[str, nn.Module]]:
    own = getattr(module, "blocks", None)
    if callable(own) and not isinstance(own, nn.Module):
        names: dict[int, list[str]] = {}
        for name, part in module.named_modules(remove_duplicate=False):
            names.setdefault(id(part), []).append(name)
        # A part that is listed again goes by its next name, if it has one.
        return [(known.pop(0) if len(known := names[id(part)]) > 1 else known[0], part) for part in own()]
    if isinstance(module, nn.Sequential):
        return _flattened(module, "")
    raise RunFailed(
        f"pipeline: the model is {type(module).__name__}, and only a sequence can be cut into stages; allowed: an "
        "nn.Sequential, or a module whose method blocks() lists its parts in order, each taking what the one before "
        "it returned"
    )


def _flattened(sequence: nn.Sequential, prefix: str) -> list[tuple[str, nn.Module]]:
    found = []
    for name, child in sequence._modules.items():  # named_children() leaves out the second use of a module
        if child is None:
            continue
        # A class of the user's own may do more than call its children.
        if isinstance(child, nn.Sequential) and type(child) is nn.Sequential:
            found += _flattened(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def cut(costs: Sequence[float], stages: int) -> list[range]:
    """Consecutive stages, none empty, the costliest as cheap as it can be; among those, the most even.

    By dynamic programming over prefixes: with n units and s stages, n² s steps.
    """
    assert 1 <= stages <= len(costs)
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    @functools.cache
    def best(stop: int, parts: int) -> tuple[float, float, int]:
        """Of the first ``stop`` units in ``parts``: the costliest, the sum of squares, where the last begins."""
        if parts == 1:
            return sums[stop], sums[stop] ** 2, 0
        ways = []
        for start in range(parts - 1, stop):
            most, squares, _ = best(start, parts - 1)
            cost = sums[stop] - sums[start]
            ways.append((max(most, cost), squares + cost**2, start))
        return min(ways)

    found: list[range] = []
    stop = len(costs)
    for parts in range(stages, 0, -1):
        start = best(stop, parts)[2]
        found.insert(0, range(start, stop))
        stop = start
    return found


def check_stages(found: Sequence[Unit], ranks: int, stages_per_rank: int) -> None:
    """Raise RunFailed where there are more stages than units."""
    stages = ranks * stages_per_rank
    if stages <= len(found):
        return
    raise RunFailed(
        f"pipeline: {ranks} rank{'s' * (ranks > 1)} with {stages_per_rank} stage{'s' * (stages_per_rank > 1)} each "
        f"need {stages} stages, and the model has {len(found)} parts with weights to train ("
        f"{', '.join(unit.names[0] for unit in found[:4])}{', ...' * (len(found) > 4)}), of which every stage must "
        f"have one; allowed: distributed.world_size of at most {max(len(found) // stages_per_rank, 1)}, fewer "
        "strategy.stages_per_rank, or a deeper model"
    )


@dataclass(frozen=True)
class Ownership:
    """Who saves what. Every name of the whole has one stage that saves it, also where stages share a tensor."""

    states: dict[str, int]
    """The stage of each tensor in the state dict."""
    canonical: dict[nn.Parameter, str]
    """The first name of every parameter to train: what its optimizer state is called."""
    holders: dict[nn.Parameter, tuple[int, ...]]
    """The stages that use it, the one that saves it first."""

    def saved_by(self, parameter: nn.Parameter, held: Sequence[int]) -> bool:
        """Whether it is the rank with these stages that saves it, and counts it where all are summed."""
        return self.holders[parameter][0] in held


def ownership(module: nn.Module, stages: Sequence[Sequence[Unit]]) -> Ownership:
    """To be asked while the module is whole."""
    states: dict[str, int] = {}
    canonical = {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
    holders: dict[nn.Parameter, list[int]] = {parameter: [] for parameter in canonical}
    for number, stage in enumerate(stages):
        for unit in stage:
            for name, part in zip(unit.names, unit.parts, strict=True):
                for key in part.state_dict():
                    states.setdefault(f"{name}.{key}", number)
                for parameter in part.parameters():
                    if parameter in holders and number not in holders[parameter]:
                        holders[parameter].append(number)
    return Ownership(states, canonical, {parameter: tuple(each) for parameter, each in holders.items()})


def strip(module: nn.Module, kept: Sequence[Unit], stages: Sequence[Sequence[Unit]]) -> None:
    """Take out of the module, in place, the parts that other ranks have; names of what stays are as before."""
    staying = {id(part) for unit in kept for part in unit.parts}
    parts = {id(part) for stage in stages for unit in stage for part in unit.parts}
    leaving = [
        name
        for name, part in module.named_modules(remove_duplicate=False)
        if id(part) in parts and id(part) not in staying
    ]
    for name in leaving:
        above, _, last = name.rpartition(".")
        setattr(module.get_submodule(above), last, nn.Identity())
