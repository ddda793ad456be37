"""Models of unusual state: complex, without elements, drawn from what nobody seeds, or read outside of its part."""

import os

import torch
from torch import nn


class Turn(nn.Module):
    """Complex tensors that are not trained: a buffer as rotary embeddings have, a parameter, one that changes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(width // 2), torch.linspace(0, 2, width // 2)))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.complex64))
        self.fixed = nn.Parameter(torch.tensor([1 + 2j, 0.5j]), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.seen.copy_(
                self.fixed * 1j
            )  # the same in every pass, of which a pipeline makes several a step
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * self.turn * self.fixed[0]
        return torch.tanh(torch.view_as_real(z).flatten(-2))


class Without(nn.Module):
    """Parameters without elements, used and unused."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.ones(width, 0)), nn.Parameter(torch.ones(0))

    def forward(self, x):
        return x + (x @ self.used).sum()


class Unseeded(nn.Module):
    """Weights and buffers that each process draws otherwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
        self.weight = nn.Parameter(torch.randn(width, width, generator=draws) / width**0.5)
        self.register_buffer("order", torch.randperm(width, generator=draws))
        self.register_buffer("mask", torch.rand(width, generator=draws) > 0.5)
        self.register_buffer("phase", torch.randn(width, dtype=torch.complex64, generator=draws))

    def forward(self, x):
        return torch.tanh(
            nn.functional.linear(x[:, self.order] * (1 + self.mask) + self.phase.imag, self.weight)
        )


class Passing(nn.Module):
    """Passes values on; its tensors are low in precision, or it has an attribute of a name that means nothing here."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sparse = True
        self.scale = nn.Parameter(torch.ones(width, dtype=torch.bfloat16))

    def forward(self, x):
        return x * self.scale


KINDS = {"turn": Turn, "without": Without, "unseeded": Unseeded, "passing": Passing}


def holding(input_shape, num_classes, *, kind: str = "turn"):
    """One of them among layers that any strategy can share out; its first weight stands in two places."""
    width = input_shape[0]
    first, last = nn.Linear(width, width), nn.Linear(width, width)
    model = nn.Sequential(
        first, KINDS[kind](width), nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, width), nn.Tanh(), last, nn.Tanh(),
        nn.Linear(width, num_classes),
    )  # fmt: skip
    if kind == "unseeded":
        last.weight = model[1].weight
    model.tensor_plan = {"2": "colwise", "4": "rowwise"}
    return model


class Embedded(nn.Module):
    """A table whose rows are chosen by the first number of each sample."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__()
        kind = nn.EmbeddingBag if way == "bag" else nn.Embedding
        self.table = kind(10, 8, sparse=way in ("module", "bag", "frozen"))
        self.table.weight.requires_grad_(way != "frozen")
        self.first, self.last, self.way = nn.Linear(inputs, 8), nn.Linear(8, outputs), way

    def forward(self, x):
        rows = (x[:, 0].abs() * 5).long().clamp(0, 9)
        if self.way == "function":
            found = nn.functional.embedding(rows, self.table.weight, sparse=True)
        elif self.way == "gather":
            found = torch.gather(self.table.weight, 0, rows[:, None].expand(-1, 8), sparse_grad=True)
        elif self.way == "cast":
            found = torch.embedding(self.table.weight * 1, rows, -1, False, True)
        else:
            found = self.table(rows[:, None] if self.way == "bag" else rows)
        return self.last(torch.tanh(self.first(x) + found))


def embedded(input_shape, num_classes, *, way: str = "module"):
    return Embedded(input_shape[0], num_classes, way)


class ReadOutside(nn.Module):
    """The weight of a block is used outside of that block."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, inputs), nn.Tanh(), nn.Linear(inputs, inputs)
        )
        self.head, self.way = nn.Linear(inputs, outputs), way
        self.tensor_plan = {"body.0": "colwise", "body.2": "rowwise"}

    def forward(self, x):
        x = self.body(x)
        weight = self.body[4].weight
        if self.way == "function":
            x = torch.tanh(nn.functional.linear(x, weight))
        elif self.way == "property":
            x = torch.tanh(x @ weight.T)
        elif self.way == "penalty":
            x = x * (1 + weight.square().mean())
        elif self.way == "direct":
            x = torch.tanh(self.body[4].forward(x))
        elif self.way == "described":  # which needs nothing of it
            x = x.to(weight.dtype) * weight.shape[0] / weight.size(0)
        return self.head(x)


def read_outside(input_shape, num_classes, *, way: str = "function"):
    return ReadOutside(input_shape[0], num_classes, way)


class Wrapping(nn.Module):
    """All names of its weights begin with what a wrapper puts before them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, x):
        return self.module(x)


def wrapping(input_shape, num_classes):
    return Wrapping(nn.Linear(input_shape[0], num_classes))


def head(input_shape, num_classes, *, classes: int = 1000):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], classes))


class Remembering(nn.Linear):
    """State that is no tensor."""

    def get_extra_state(self):
        return {"since": 3}

    def set_extra_state(self, state):
        assert state == {"since": 3}


def remembering(input_shape, num_classes):
    return nn.Sequential(Remembering(input_shape[0], num_classes))


def complex_weight(input_shape, num_classes):
    model = nn.Sequential(nn.Linear(input_shape[0], num_classes))
    model.register_parameter("spectrum", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))
    return model
