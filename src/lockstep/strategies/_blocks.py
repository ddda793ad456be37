"""The blocks of a model: the parts that it goes through one after another, found without the model's help.

What is done block by block (wrapping for sharding, dropping activations) asks here, so that it is the same parts.
"""

import math

from torch import nn

IN_RUNS = (
    "computed_again_in_runs"  # an attribute of a Sequential whose forward pass drops its layers' activations
)


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks that hold trainable parameters, by name, in order.

    What the model's own ``blocks()`` gives, where it has one; else the children of a Sequential; else what stands in
    the Sequentials and ModuleLists nearest to the root. Empty where there is nothing of the kind.
    """
    own = getattr(module, "blocks", None)
    if callable(own) and not isinstance(own, nn.Module):
        names = {id(part): name for name, part in module.named_modules()}
        found = {names[id(part)]: part for part in own()}
    else:
        found = _listed(module, "")
    return {name: part for name, part in found.items() if any(p.requires_grad for p in part.parameters())}


def _listed(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    if isinstance(module, nn.Sequential | nn.ModuleList):
        found = {}
        for name, child in module.named_children():
            inner = (
                _listed(child, f"{prefix}{name}.") if isinstance(child, nn.Sequential | nn.ModuleList) else {}
            )
            found.update(inner or {f"{prefix}{name}": child})
        return found
    found = {}
    for name, child in module.named_children():
        found.update(_listed(child, f"{prefix}{name}."))
    return found


def runs(count: int) -> list[range]:
    """So many layers in the square root of their number of runs, whose lengths differ by one at most.

    Where a run keeps its input only, that is where inputs kept and layers computed at once are fewest together.
    """
    number = math.isqrt(max(count - 1, 0)) + 1  # the square root, rounded up
    return [range(count * run // number, count * (run + 1) // number) for run in range(number)]
