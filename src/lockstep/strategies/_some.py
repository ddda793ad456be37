"""A choice of a module's parameters, to be handed to whatever asks a module for its parameters."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


class Some(nn.Module):
    """Some parameters of a module, under their names in it."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._named = dict(named)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """All of them."""
        return iter(self._named.items())
