"""Which leaves an autograd graph leads to."""

from torch import Tensor
from torch.autograd.graph import Node


def leaf_uses(result: Tensor, passed_through: str | None = None) -> dict[Tensor, int]:
    """How many nodes of the graph of ``result`` hand a gradient to each of its leaves.

    Of a Function named ``passed_through``, only the way to its first tensor is followed.
    """
    uses: dict[Tensor, int] = {}
    waiting: list[Node | None] = [result.grad_fn]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        only = passed_through is not None and node.name() == f"{passed_through}Backward"
        for following, _ in (
            [each for each in node.next_functions if each[0]][:1] if only else node.next_functions
        ):
            variable = getattr(following, "variable", None)
            if variable is not None:
                uses[variable] = uses.get(variable, 0) + 1
            else:
                waiting.append(following)
    return uses
