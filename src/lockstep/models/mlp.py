"""A multilayer perceptron for anything that can be flattened."""

import itertools
import math
from typing import Annotated

from pydantic import Field
from torch import nn


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = [256, 256],  # noqa: B006 - read, never changed
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Linear layers with ReLU between them: (batch, *input_shape) to (batch, num_classes) logits."""
    sizes = [math.prod(input_shape), *hidden_sizes]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
    model.tensor_plan = _tensor_plan(model)  # type: ignore[assignment]
    return model


def _tensor_plan(model: nn.Sequential) -> dict[str, str]:
    """Two layers at a time: the first cut by output, the second by input; an odd one at the end stays whole."""
    names = [name for name, part in model.named_children() if isinstance(part, nn.Linear)]
    pairs = zip(names[::2], names[1::2], strict=False)
    return {name: way for pair in pairs for name, way in zip(pair, ("colwise", "rowwise"), strict=True)}
