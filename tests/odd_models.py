"""Models that do what no list of module names would tell: for the tests of what is observed before training."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def three(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, classes))


class Experts(nn.Module):
    """Each row goes through one of them."""

    def __init__(self, inputs: int, classes: int, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(inputs, count)
        self.experts = nn.ModuleList(nn.Linear(inputs, classes) for _ in range(count))

    def forward(self, x):
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x), self.experts[0].out_features)
        for number, expert in enumerate(self.experts):
            if len(rows := (chosen == number).nonzero().squeeze(-1)):
                out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
        return out


def experts(shape, classes, *, count: int = 3):
    return Experts(shape[0], classes, count)


class InBlocks(nn.Module):
    """The same inside of a block, which every rank goes through."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Experts(inputs, inputs, 3), Experts(inputs, inputs, 3)])
        self.out = nn.Linear(inputs, classes)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x)


def experts_in_blocks(shape, classes):
    return InBlocks(shape[0], classes)


def experts_with_a_plan(shape, classes):
    model = InBlocks(shape[0], classes)
    model.up, model.down = nn.Linear(shape[0], 8), nn.Linear(8, shape[0])
    model.tensor_plan = {"up": "colwise", "down": "rowwise"}
    layers = model.forward
    model.forward = lambda x: layers(x + model.down(torch.tanh(model.up(x))))
    return model


class LayerDrop(nn.Module):
    """Layers that are left out at random, which each rank draws for itself."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(4))
        self.out = nn.Linear(inputs, classes)

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand(()) > 0.4:
                x = x + torch.tanh(layer(x))
        return self.out(x)


def layer_drop(shape, classes):
    return LayerDrop(shape[0], classes)


class Late(nn.Module):
    """Leaves out a block on one path that no look before training can see: from its 12th pass on, for some samples."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(3))
        self.out = nn.Linear(inputs, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += self.training
        for number, layer in enumerate(self.layers):
            if number == int(x[0, 0] > 0) and self.calls > 12:
                continue
            x = x + torch.tanh(layer(x))
        return self.out(x)


def late(shape, classes):
    return Late(shape[0], classes)


class Gated(nn.Module):
    """Gates that pair columns across a cut: the plan is wrong."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(inputs, 32), nn.Linear(16, inputs)
        self.out = nn.Linear(inputs, classes)
        self.tensor_plan = {"up": "colwise", "down": "rowwise"}

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return self.out(x + self.down(gate.sigmoid() * value))


def gated(shape, classes):
    return Gated(shape[0], classes)


def hooked(shape, classes, *, after: bool = False):
    model = three(shape[0], classes)
    model.tensor_plan = {"0": "colwise", "2": "rowwise"}
    if after:

        def slower(parameter: torch.Tensor) -> None:
            parameter.grad.mul_(0.1)

        model[4].weight.register_post_accumulate_grad_hook(slower)
    else:
        model[4].weight.register_hook(lambda gradient: gradient * 0.1)
    return model


class Teacher(nn.Module):
    """Follows the student inside of the forward pass."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(inputs, 8), nn.Linear(inputs, 8)
        self.out = nn.Linear(16, classes)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    def forward(self, x):
        if self.training:
            for own, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                own.data.lerp_(its.data, 0.25)  # behind the back of its version counter
        return self.out(torch.cat([torch.tanh(self.student(x)), torch.tanh(self.teacher(x))], -1))


def teacher(shape, classes):
    return Teacher(shape[0], classes)


class LateWriter(nn.Module):
    """Clips a weight that only grows beyond the bound after some steps."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.take, self.give = nn.Linear(inputs, 8), nn.Linear(8, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls > 9:
            with torch.no_grad():
                self.take.weight.clamp_(-0.1, 0.1)
        return self.give(torch.tanh(self.take(x)))


def late_writer(shape, classes):
    return LateWriter(shape[0], classes)


class Helper:
    def __init__(self):
        self.calls, self.nested = 0, {"deep": [0]}


class WithHelper(nn.Module):
    """Keeps what it counts in an object of its own."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layer, self.helper = nn.Linear(inputs, classes), Helper()

    def forward(self, x):
        self.helper.calls += 1
        self.helper.nested["deep"][0] += 1
        return self.layer(x) * min(1.0, self.helper.calls / 100 + 0.1)


def with_helper(shape, classes):
    return WithHelper(shape[0], classes)


def lazy(shape, classes):
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(classes))


class Centred(nn.Module):
    """Looks at the whole batch, in evaluation mode too."""

    def forward(self, x):
        return x - x.mean(0)


def centred(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 8), Centred(), nn.Linear(8, classes))


class AlwaysNoisy(nn.Module):
    """Draws from a generator of its own in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        return x + 0.1 * torch.randn(x.shape, generator=self.generator).to(x)


def always_noisy(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 8), AlwaysNoisy(), nn.Linear(8, classes))


class TrainedOtherwise(nn.Module):
    """A plan that is wrong in the modes of training only."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.up, self.down, self.out = nn.Linear(inputs, 8), nn.Linear(8, inputs), nn.Linear(inputs, classes)
        self.tensor_plan = {"up": "colwise", "down": "rowwise"}

    def forward(self, x):
        z = torch.tanh(self.up(x))
        if self.training:
            z = z * torch.linspace(0, 1, z.shape[-1], dtype=z.dtype)
        return self.out(x + self.down(z))


def trained_otherwise(shape, classes):
    return TrainedOtherwise(shape[0], classes)


class Detached(nn.Module):
    """Lets no gradient through between two of its parts, while it is trained."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(inputs, 8), nn.Linear(8, 8), nn.Linear(8, classes)])

    def blocks(self):
        return list(self.layers)

    def forward(self, x):
        for number, layer in enumerate(self.layers):
            x = layer(x)
            x = x.detach() if number == 0 and self.training else x
        return x


def detached(shape, classes):
    return Detached(shape[0], classes)


def transposed(shape, classes):
    """A decoder that shares its encoder's memory."""
    model = nn.Sequential(
        nn.Linear(shape[0], 8, bias=False),
        nn.Tanh(),
        nn.Linear(8, shape[0], bias=False),
        nn.Linear(shape[0], classes),
    )
    model[2].weight.data = model[0].weight.data.t()
    return model


class FirstBatch(nn.Module):
    """Sets itself from the first batch that it sees, remembered in a plain attribute."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.take, self.give = nn.Linear(inputs, 8), nn.Linear(8, classes)
        self.shift = nn.Parameter(torch.zeros(8))
        self.ready = False

    def forward(self, x):
        h = self.take(x)
        if not self.ready:
            self.shift.data.copy_(-h.detach().mean(0))
            self.ready = True
        return self.give(torch.tanh(h + self.shift))


def first_batch(shape, classes):
    return FirstBatch(shape[0], classes)


def frozen_norm(shape, classes):
    model = nn.Sequential(nn.Linear(shape[0], 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, classes))
    model[1].eval()
    return model


def normed(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, classes))


class Statistics(nn.Module):
    """Normalises by the batch, and keeps nothing of it."""

    def forward(self, x):
        return (x - x.mean(0)) if self.training else x


def statistics(shape, classes):
    return nn.Sequential(nn.Linear(shape[0], 16), Statistics(), nn.Linear(16, classes))


class Noise(nn.Module):
    """Draws from one source."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        if not self.training:
            return x
        if self.source == "functional":
            return F.dropout(x, 0.3)
        if self.source == "in place":
            return x * x.new_empty(len(x), 1).bernoulli_(0.7)
        if self.source == "numpy":
            return x * float(np.random.rand())
        if self.source == "python":
            return x * random.random()
        return x * torch.rand((), generator=self.generator, dtype=x.dtype)


def noisy(shape, classes, *, source: str = "functional"):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.Tanh(), Noise(source), nn.Linear(8, classes))


class Projection(nn.Module):
    """A constant that is drawn by the constructor, and no part of the state."""

    def __init__(self, inputs: int, classes: int, source: str) -> None:
        super().__init__()
        self.out = nn.Linear(8, classes)
        if source == "numpy":
            values = torch.from_numpy(np.random.randn(inputs, 8)).float()
        elif source == "python":
            values = torch.tensor([[random.gauss(0, 1) for _ in range(8)] for _ in range(inputs)])
        else:
            values = torch.from_numpy(np.random.default_rng().normal(size=(inputs, 8))).float()
        self.register_buffer("constant", values, persistent=False)

    def forward(self, x):
        return self.out(torch.tanh(x @ self.constant))


def projected(shape, classes, *, source: str = "numpy"):
    return Projection(shape[0], classes, source)


def reused(shape, classes, *, p: float = 1.0):
    """One Dropout in two places, and one Tanh: with p = 1 the last weight never moves."""
    drop, tanh = nn.Dropout(p), nn.Tanh()
    return nn.Sequential(
        nn.Linear(shape[0], 8), tanh, drop, nn.Linear(8, 8), tanh, drop, nn.Linear(8, classes)
    )


def layer_twice(shape, classes):
    """One Linear in two places of a sequence."""
    layer = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Linear(shape[0], 8),
        nn.Tanh(),
        layer,
        nn.Tanh(),
        layer,
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.Linear(8, classes),
    )


class Between(nn.Sequential):
    """Draws between its parts, in a forward pass of its own, while it is trained."""

    def forward(self, x):
        for part in self:
            x = F.dropout(part(x), 0.5, self.training)
        return x


def between(shape, classes):
    return Between(nn.Linear(shape[0], 8), nn.Linear(8, 8), nn.Linear(8, classes))
