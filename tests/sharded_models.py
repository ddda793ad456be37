"""Models that make sharding hard, and one that watches what its rank holds."""

import gc
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class Gained(nn.Linear):
    """A layer, and so a block, with a single number of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) * self.gain


class Awkward(nn.Module):
    """A weight used twice, one that nothing uses, a frozen one, and dimensions that no number of ranks divides."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.take = nn.Linear(inputs, 7)
        self.layers = nn.ModuleList(
            [nn.Linear(7, 7), nn.Linear(7, 7, bias=False), nn.Sequential(Gained(7, 7))]
        )
        self.layers[1].weight = self.layers[0].weight  # tied between two blocks
        self.scale = nn.Parameter(torch.ones(1))  # fewer rows than ranks
        self.unused = nn.Parameter(torch.randn(3, 2))
        self.temperature = nn.Parameter(torch.tensor(0.5))  # a single number, as are the next two
        self.still = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.idle = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.norm = nn.BatchNorm1d(7, affine=False, momentum=0.0)  # buffers, which nothing changes
        self.give = nn.Linear(7, classes)

    def forward(self, features: Tensor) -> Tensor:
        seen = self.take(features.flatten(1)) + self.frozen
        for layer in self.layers:
            seen = torch.tanh(layer(seen)) * self.scale
        return self.give(seen) * self.temperature.exp() * self.still


def awkward(input_shape, num_classes):
    return Awkward(input_shape[0], num_classes)


def watched(input_shape, num_classes, *, report: str):
    """Four equal blocks. Gathering a tensor whole fails, and each save tells what tensors the rank has then."""
    from torch.distributed.tensor import DTensor

    from lockstep.engine import sharded

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was gathered whole")

    DTensor.full_tensor = refused
    save = sharded.save

    def told(checkpoints, slices, meta, ranks):
        with Path(f"{report}-{ranks.rank}").open("a") as file:
            file.write(json.dumps({"held": held(), "own": of(slices)}) + "\n")
        return save(checkpoints, slices, meta, ranks)

    sharded.save = told
    layers = [
        nn.Linear(input_shape[0], 256),
        *(nn.Linear(256, 256) for _ in range(4)),
        nn.Linear(256, num_classes),
    ]
    return nn.Sequential(*layers)


def of(slices) -> int:
    return sum(one.data.nbytes for part in slices.values() for one in part.values())


def held() -> int:
    """The bytes of all memory that tensors of this process stand in."""
    storages = {}
    for each in gc.get_objects():
        if isinstance(each, torch.Tensor) and type(each) in (torch.Tensor, nn.Parameter):
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Whole(nn.Module):
    """A layer that writes into the rank's log how much of its model's weights and gradients stands whole then."""

    def __init__(self, inputs: int, outputs: int, root: nn.Module) -> None:
        super().__init__()
        self.net = nn.Linear(inputs, outputs)
        self.root = [root]  # in a list: no child of this one

    def forward(self, values: Tensor) -> Tensor:
        logits = self.net(values)
        if isinstance(self.root[0], FSDPModule) and logits.requires_grad:
            self.tell()
            logits.register_hook(self.tell)
        return torch.tanh(logits)

    def tell(self, *_: object) -> None:
        whole = [p for p in self.root[0].parameters() if type(p) is nn.Parameter]
        gradients = [p.grad for p in whole if p.grad is not None]
        print("whole", sum(p.nbytes for p in whole), sum(g.nbytes for g in gradients), flush=True)


class TellingWhole(nn.Module):
    """Three layers of unequal size, and the root's own."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Whole(one, other, self) for one, other in itertools.pairwise([inputs, 32, 48, 16])
        )
        self.give = nn.Linear(16, classes)

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(features)
        return self.give(features)


def telling_whole(input_shape, num_classes):
    return TellingWhole(input_shape[0], num_classes)
