"""A vision transformer: an image as a sequence of patches.

Dosovitskiy et al., "An image is worth 16x16 words" (2020), arXiv 2010.11929. The defaults are ViT-B/16.
"""

import math
from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.errors import RunFailed
from lockstep.models._images import channels_of
from lockstep.models._transformer import SPREAD, Block, check_heads, initialise


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch_size: Annotated[int, Field(ge=1, le=4096)] = 16,
    dim: Annotated[int, Field(ge=1, le=65536)] = 768,
    depth: Annotated[int, Field(ge=1, le=1024)] = 12,
    heads: Annotated[int, Field(ge=1, le=1024)] = 12,
    hidden_size: Annotated[int, Field(ge=1, le=262144)] | None = None,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """(batch, channels, height, width), or (batch, height, width), to (batch, num_classes) logits.

    The size of the images is the data's. ``hidden_size`` of the two layers of each block is 4 ``dim`` if null.
    """
    channels, height, width = channels_of(input_shape, "vit"), *input_shape[-2:]
    if height % patch_size or width % patch_size:
        raise RunFailed(
            f"model.patch_size: found {patch_size}, allowed with images of {height} x {width}: a divisor of both"
        )
    check_heads(dim, heads, "vit")
    hidden = hidden_size or 4 * dim
    blocks = [
        Block(dim, heads, hidden, dropout, causal=False, approximate="none", epsilon=1e-6)
        for _ in range(depth)
    ]
    patches = height // patch_size * (width // patch_size)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(input_shape) == 2:
        layers["channel"] = nn.Unflatten(1, (1, height))
    layers |= {
        "embedding": Patches(channels, patch_size, patches, dim, dropout),
        "layers": nn.Sequential(*blocks),
        "norm": nn.LayerNorm(dim, eps=1e-6),
        "head": Head(dim, num_classes),
    }
    model = nn.Sequential(layers)
    initialise(model, depth)
    nn.init.zeros_(layers["head"].out.weight)  # type: ignore[union-attr, arg-type]
    return model


class Patches(nn.Module):
    """A vector for each square of the image, behind one that stands for the whole; and one for each place."""

    def __init__(self, channels: int, patch_size: int, patches: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        self.whole = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, 1 + patches, dim) * SPREAD)
        self.dropout = nn.Dropout(dropout)
        nn.init.trunc_normal_(self.projection.weight, std=math.sqrt(1 / (channels * patch_size**2)))
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, height, width) to (B, 1 + patches, D)."""
        patches_bld = self.projection(images).flatten(2).transpose(1, 2)
        whole_bld = self.whole.expand(len(images), -1, -1)
        out: Tensor = self.dropout(torch.cat([whole_bld, patches_bld], dim=1) + self.position)
        return out


class Head(nn.Module):
    """The class from the vector that stands for the whole."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x_bld: Tensor) -> Tensor:
        """(B, L, D) to (B, num_classes)."""
        out: Tensor = self.out(x_bld[:, 0])
        return out
