"""Models whose weights do not stand in memory row by row, one kind of layout in each layer."""

import torch
from torch import nn


class Layer(nn.Module):
    """A linear layer of a weight that is laid out in memory in its own way."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Pictures(nn.Module):
    """A convolution whose weight has its channels last, over rows of numbers seen as pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(2, 2, 3, padding=1).to(memory_format=torch.channels_last)

    def forward(self, x):
        return x + self.conv(x.view(len(x), 2, self.width // 2, -1)).flatten(1)


class Scaled(nn.Module):
    """A weight that is a single number, one of one element, and a buffer whose rows share memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(1, 1))
        self.register_buffer("table", torch.linspace(0, 1, width).expand(3, width))

    def forward(self, x):
        return torch.tanh(x * self.scale + self.shift) + self.table[1]


def weight(rows: int, columns: int, layout: str) -> torch.Tensor:
    """A random matrix in some layout; all kinds draw the same numbers."""
    values = torch.randn(rows, columns) / columns**0.5
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "sliced":  # memory with gaps
        room = torch.zeros(rows, 2 * columns)
        room[:, ::2] = values
        return room[:, ::2]
    if layout == "rows":
        room = torch.zeros(2 * rows, columns)
        room[::2] = values
        return room[::2]
    return values


def layered(input_shape, num_classes):
    """Every layout that a weight of one's own may have, in a sequence that any strategy can cut."""
    width = input_shape[0]
    model = nn.Sequential(
        Layer(weight(width, width, "transposed")),
        Scaled(width),
        Layer(weight(width, width, "sliced")),
        nn.Tanh(),
        Pictures(width),
        nn.Linear(width, 8),
        nn.Tanh(),
        nn.Linear(8, width),
        Layer(weight(width, width, "rows")),
        nn.Tanh(),
        nn.Linear(width, num_classes),
    )
    model.tensor_plan = {"5": "colwise", "7": "rowwise"}
    return model


def expanded(input_shape, num_classes, *, trained: bool = True):
    """Every row of a weight is the same memory."""
    model = nn.Sequential(
        Layer(torch.linspace(-1, 1, input_shape[0]).expand(8, input_shape[0])),
        nn.Tanh(),
        nn.Linear(8, num_classes),
    )
    model[0].weight.requires_grad_(trained)
    return model
