"""Models of a user's own, for tests: one that misbehaves, and one whose weights are used unevenly."""

import math
import os
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def own_rank():
    """By the name of this rank's log, which every strategy has."""
    return int(os.readlink("/proc/self/fd/1").rpartition("-")[2].removesuffix(".log"))


class Faulty(nn.Module):
    """Goes wrong at its 30th training pass on one rank."""

    def __init__(self, inputs: int, outputs: int, kind: str, rank: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        self.kind, self.rank, self.calls = kind, rank, 0

    def forward(self, x):
        self.calls += self.training
        if self.kind == "allocate at once" and self.training and own_rank() == self.rank:
            torch.empty(10**15)  # in whichever pass is the first, before step 1 or in it
        if self.calls == 30 and own_rank() == self.rank:
            return self.fail(x)
        return self.net(x)

    def fail(self, x):
        if self.kind == "raise":
            raise ValueError("the culprit's own words")
        if self.kind == "segv":
            os.kill(os.getpid(), 11)
        if self.kind == "exit":
            os._exit(7)
        if self.kind == "exit well":
            os._exit(0)
        if self.kind == "nan":
            return self.net(x) * float("nan")
        if self.kind == "allocate":
            torch.empty(10**15)
        if self.kind == "hang":
            time.sleep(600)
        if self.kind == "drift":
            with torch.no_grad():
                self.net.bias += 1e-3
        return self.net(x)


def faulty(input_shape, num_classes, *, kind: str = "raise", rank: int = 1):
    return Faulty(input_shape[0], num_classes, kind, rank)


class Odd(nn.Module):
    """A weight used twice, one never used, and one used only for some rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.twice = nn.Linear(inputs, inputs)
        self.never = nn.Linear(inputs, inputs)
        self.sometimes = nn.Linear(inputs, inputs)
        self.last = nn.Linear(inputs, outputs)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(x)))
        rows = x[:, :1] > 0.6
        if bool(rows.any()):
            x = x + torch.where(rows, self.sometimes(x), torch.zeros_like(x))
        return self.last(x)


def odd(input_shape, num_classes):
    return Odd(input_shape[0], num_classes)


def loud(input_shape, num_classes):
    """A model whose gradients overflow in fp16 until the loss is scaled by a good deal less."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), 8), Times(300.0), nn.Linear(8, num_classes)
    )


class Times(nn.Module):
    """Multiplies what goes through, and with it the gradients that come back."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, values):
        """Of any shape."""
        return values * self.factor


class Picky(nn.Module):
    """Reads a weight as a number while it is built: nothing that a tensor without memory can give."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        if self.net.weight.is_meta:
            raise ValueError("picky about memory")

    def forward(self, x):
        return self.net(x)


def picky(input_shape, num_classes):
    return Picky(input_shape[0], num_classes)


class Laid(nn.Module):
    """Weights that do not stand row by row in memory: a transposed one, and convolutions with channels last."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(inputs, 36).t() * 0.3)
        self.conv = nn.Conv2d(1, 3, 3).to(memory_format=torch.channels_last)
        self.more = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.last = nn.Linear(4 * 9, outputs)

    def forward(self, x):
        x = torch.nn.functional.linear(x, self.first).view(-1, 1, 6, 6)
        return self.last(self.more(torch.relu(self.conv(x))).flatten(1))


def laid(input_shape, num_classes):
    return Laid(input_shape[0], num_classes)


class Uneven(nn.Module):
    """A part that only some ranks use in a step, which is also the shape of one that all of them use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.always = nn.Linear(inputs, outputs)
        self.sometimes = nn.Linear(inputs, outputs)
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, x):
        logits = self.always(x)
        return logits + self.sometimes(x) if float(x[0].sum()) % 2 < 1 else logits


def uneven(input_shape, num_classes):
    return Uneven(input_shape[0], num_classes)


def sparse(input_shape, num_classes):
    return nn.Embedding(20, num_classes, sparse=True)


class Some(nn.Module):
    """A part that is used where some row's first number is large: in some micro-batches, and not in others."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sometimes = nn.Linear(inputs, outputs)
        self.last = nn.Linear(inputs, outputs)

    def forward(self, x):
        logits = self.last(x)
        rows = x[:, :1] > 1.0
        return logits + torch.where(rows, self.sometimes(x), 0.0) if bool(rows.any()) else logits


def some(input_shape, num_classes):
    return Some(input_shape[0], num_classes)


class Fading(nn.Module):
    """A part that no pass uses any more after the first ten."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.always, self.first = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.always(x) + self.first(x) if self.calls <= 10 else self.always(x)


def fading(input_shape, num_classes):
    return Fading(input_shape[0], num_classes)


class Reentrant(nn.Module):
    """One layer in three segments that are computed again by a backward pass of their own: three gradients of it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(inputs, 16), nn.Linear(16, 16)
        self.last = nn.Linear(16, outputs)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for _ in range(3):
            x = checkpoint(lambda values: torch.tanh(self.block(values)), x, use_reentrant=True)
        return self.last(x)


def reentrant(input_shape, num_classes):
    return Reentrant(input_shape[0], num_classes)


class Telling(nn.Module):
    """Passes values on, and leaves a word in the rank's log for each training pass: a digest of where they are 0."""

    def forward(self, x):
        if self.training:
            print("pass", hash(tuple((x != 0).flatten().tolist())), flush=True)
        return x


def telling(input_shape, num_classes, *, dropout: float = 0.0):
    """Three layers to cut by columns or into stages, with a dropout between the first two."""
    layers = [
        nn.Linear(input_shape[0], 16),
        nn.Dropout(dropout),
        Telling(),
        nn.Linear(16, 8),
        Telling(),
        nn.Tanh(),
    ]
    model = nn.Sequential(*layers, nn.Linear(8, num_classes))
    model.tensor_plan = {"0": "colwise", "3": "rowwise"}
    return model


def passes_told(run, rank):
    return [
        line.split()[1] for line in run.rank_log(rank).read_text().splitlines() if line.startswith("pass ")
    ]


def tied(input_shape, num_classes, *, plan: str = "alike"):
    """Two pairs of layers that are the same weights; the plan cuts both, or one only."""
    size = input_shape[0]
    layers = [nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, size), nn.Tanh()]
    layers += [nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, size), nn.Tanh(), nn.Linear(size, num_classes)]
    for first, second in ((0, 4), (2, 6)):
        layers[second].weight = layers[first].weight
    model = nn.Sequential(*layers)
    cut = {"0": "colwise", "2": "rowwise"}
    model.tensor_plan = cut | ({"4": "colwise", "6": "rowwise"} if plan == "alike" else {})
    return model


def frozen(input_shape, num_classes):
    return nn.Linear(input_shape[0], num_classes).requires_grad_(False)


class Returning(nn.Module):
    """Returns more than logits, or fails in a way of its own."""

    def __init__(self, inputs: int, outputs: int, what: str) -> None:
        super().__init__()
        self.net, self.what = nn.Linear(inputs, outputs), what

    def forward(self, x):
        if self.what == "attribute":
            return self.net(x.no_such_thing)
        return {"tuple": (self.net(x), None), "mapping": {"logits": self.net(x)}}[self.what]


def returning(input_shape, num_classes, *, what: str = "tuple"):
    return Returning(input_shape[0], num_classes, what)


def normed(input_shape, num_classes):
    """Statistics of batches, which every rank makes of its own samples."""
    return nn.Sequential(
        nn.Linear(input_shape[0], 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, num_classes)
    )


class Tempered(nn.Module):
    """Logits times a temperature that is learnt: a single number."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.tensor_plan = {"net.0": "colwise", "net.2": "rowwise"}

    def forward(self, x):
        return self.net(x) * self.temperature


def tempered(input_shape, num_classes):
    return Tempered(input_shape[0], num_classes)


def bent(input_shape, num_classes):
    """A weight between two layers that are cut: each rank's columns give it a part of its gradient."""
    model = nn.Sequential(
        nn.Linear(input_shape[0], 16), nn.PReLU(), nn.Linear(16, 8), nn.PReLU(), nn.Linear(8, num_classes)
    )
    model.tensor_plan = {"0": "colwise", "2": "rowwise"}
    return model


class Counting(nn.Module):
    """Its outputs depend on how often it was called in training, which it counts in a buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, x):
        self.passes += self.training
        return self.net(x) / (1 + self.passes)


def counting(input_shape, num_classes):
    return Counting(input_shape[0], num_classes)


class Unjudged(nn.Module):
    """Sound in training; outside of it, after so many updates, its outputs are not finite."""

    def __init__(self, inputs: int, outputs: int, factor: float, after: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        self.factor, self.after = factor, after
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.updates += 1
        elif self.updates > self.after:
            return self.net(x) * self.factor
        return self.net(x)


def unjudged(input_shape, num_classes, *, factor: str = "nan", after: int = 0):
    return Unjudged(input_shape[0], num_classes, float(factor), after)


class OneInfinite(nn.Module):
    """Outside of training the first output is infinitely unlikely, so that a loss is infinite and not NaN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)

    def forward(self, x):
        y = self.net(x)
        return y if self.training else torch.cat([torch.full_like(y[:, :1], -math.inf), y[:, 1:]], dim=1)


def one_infinite(input_shape, num_classes):
    return OneInfinite(input_shape[0], num_classes)
