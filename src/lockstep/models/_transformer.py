"""The block of `gpt` and `vit`: attention, then two linear layers, each after a norm and beside the identity.

Vaswani et al., arXiv 1706.03762; the norm comes first (Xiong et al., arXiv 2002.04745). Shapes: B batch, L length,
D width, H heads, K width of a head.
"""

import math

import torch
from torch import Tensor, nn

from lockstep.errors import RunFailed

SPREAD = 0.02  # of initial weights, as in GPT-2 and ViT


class Attention(nn.Module):
    """Every place attends to all, or to those up to itself where it is causal."""

    def __init__(self, dim: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.head_dim, self.dropout, self.causal = dim // heads, dropout, causal
        # Three layers and not one: cut by output they fall into whole heads, which is how ranks can share them.
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        each = f"colwise:{self.head_dim}"  # heads stay whole
        self.tensor_plan = {
            "": "shared", "query": each, "key": each, "value": each, "out": "rowwise",
        }  # fmt: skip

    def forward(self, x_bld: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D). The number of heads is what the layers' outputs hold."""
        q_bhlk, k_bhlk, v_bhlk = (
            layer(x_bld).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed_bhlk = nn.functional.scaled_dot_product_attention(
            q_bhlk,
            k_bhlk,
            v_bhlk,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        out: Tensor = self.out(mixed_bhlk.transpose(1, 2).flatten(2))
        return out


class Feedforward(nn.Module):
    """Each place by itself: wider, GELU, back."""

    def __init__(self, dim: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.approximate = approximate
        self.tensor_plan = {"up": "colwise", "down": "rowwise"}

    def forward(self, x_bld: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        out: Tensor = self.down(nn.functional.gelu(self.up(x_bld), approximate=self.approximate))
        return out


class Block(nn.Module):
    """One layer of a transformer."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float,
        *,
        causal: bool,
        approximate: str,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=epsilon)
        self.attention = Attention(dim, heads, dropout, causal)
        self.feedforward_norm = nn.LayerNorm(dim, eps=epsilon)
        self.feedforward = Feedforward(dim, hidden, approximate)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_bld: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        attended: Tensor = x_bld + self.dropout(self.attention(self.attention_norm(x_bld)))
        out: Tensor = attended + self.dropout(self.feedforward(self.feedforward_norm(attended)))
        return out


def check_heads(dim: int, heads: int, model: str) -> None:
    """Refuse heads that would not be of the same width."""
    if dim % heads:
        raise RunFailed(
            f"model.heads: found {heads}, allowed with model.dim {dim} of {model}: a divisor of it"
        )


@torch.no_grad()
def initialise(model: nn.Module, depth: int) -> None:
    """Small normal weights, biases of zero; what is added to the identity is smaller, by how often it is added."""
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            last = name.endswith((".attention.out", ".feedforward.down"))
            nn.init.normal_(part.weight, std=SPREAD / math.sqrt(2 * depth) if last else SPREAD)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
