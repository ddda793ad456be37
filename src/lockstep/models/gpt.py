"""A causal language model: the next token from those before it.

Radford et al., "Language models are unsupervised multitask learners" (2019): GPT-2's layers, norms and sizes.
"""

from collections import OrderedDict
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.errors import RunFailed
from lockstep.models._transformer import Block, check_heads, initialise


def gpt(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    dim: Annotated[int, Field(ge=1, le=65536)] = 384,
    depth: Annotated[int, Field(ge=1, le=1024)] = 6,
    heads: Annotated[int, Field(ge=1, le=1024)] = 6,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    tie_weights: bool = True,
) -> nn.Module:
    """Tokens (batch, length) to logits (batch, length, num_classes) of the token that follows each.

    The context length is the data's, and ``num_classes`` its vocabulary. ``tie_weights`` makes the last layer's
    weights those of the token embedding (Press and Wolf, arXiv 1608.05859).
    """
    if len(input_shape) != 1:
        raise RunFailed(
            f"model.name: gpt takes sequences of tokens, and the data's samples have the shape {input_shape}. Choose "
            "data.name: text, or model.name: mlp, resnet or vit"
        )
    check_heads(dim, heads, "gpt")
    blocks = [
        Block(dim, heads, 4 * dim, dropout, causal=True, approximate="tanh", epsilon=1e-5)
        for _ in range(depth)
    ]
    model = nn.Sequential(
        OrderedDict[str, nn.Module](
            embedding=Embedding(num_classes, input_shape[0], dim, dropout),
            layers=nn.Sequential(*blocks),
            norm=nn.LayerNorm(dim),
            head=nn.Linear(dim, num_classes, bias=False),
        )
    )
    initialise(model, depth)
    if tie_weights:
        model.head.weight = model.embedding.token.weight  # type: ignore[union-attr]
    return model


class Embedding(nn.Module):
    """A vector for each token, and one for each place."""

    def __init__(self, vocabulary: int, context_length: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(context_length, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_bl: Tensor) -> Tensor:
        """(B, L) to (B, L, D)."""
        if tokens_bl.is_floating_point():
            raise RunFailed(
                "model.name: gpt takes tokens, and the data gives numbers with a fraction. Choose data.name: text"
            )
        places = torch.arange(tokens_bl.shape[1], device=tokens_bl.device)
        out: Tensor = self.dropout(self.token(tokens_bl) + self.position(places))
        return out
