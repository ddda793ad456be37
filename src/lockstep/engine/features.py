"""The inputs of a split as a rank reads them: mapped from disk, turned into what the model takes, batch by batch.

What is on disk stays as it came (bytes of pixels, numbers of tokens), and all ranks map the same pages; only the
rows of one batch are ever converted.
"""

import itertools
import math
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from lockstep.engine.augmentation import AREA, LEFT, crop_and_flip, offsets
from lockstep.engine.decoding import Decoder, Task
from lockstep.files import read_json
from lockstep.parameters import Augmentation, Parameters

LARGEST_BYTE = 255.0


class Table:
    """Inputs that stand in one tensor, (samples, *shape).

    Floating-point numbers come in the run's precision, and bytes are pixels, scaled to 0..1 and normalised by
    ``mean`` and ``std`` per channel; other whole numbers are indices and come as int64.
    """

    ahead = 0  # for how many steps it is worth knowing the rows before they are asked for

    def __init__(
        self,
        values: Tensor,
        precision: torch.dtype | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        indices: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.values = values
        self.precision = precision or (values.dtype if values.is_floating_point() else torch.float32)
        self.indices = indices or not (values.is_floating_point() or values.dtype == torch.uint8)
        self.augmentation = augmentation if augmentation and augmentation.on_pixels else None
        self.seed = seed
        self.normalize = _Normalize(mean, std, values.dtype == torch.uint8, values.dim() - 1, self.precision)

    @property
    def elements(self) -> int:
        """Numbers in one sample."""
        return self.values[:1].numel()

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """The inputs of some rows; augmented as in that epoch, or as they are where it is None."""
        chosen = self.values.index_select(0, rows)
        if self.indices:
            return chosen.long()
        if self.augmentation is not None and epoch is not None:
            chosen = crop_and_flip(chosen, self.augmentation, offsets(self.seed, epoch, rows))
        return self.normalize(chosen)

    def expect(self, rows: Tensor, epoch: int | None) -> None:
        """Told which rows come next; what is mapped needs no preparation."""


class _Normalize:
    """(value * scale + shift) per channel, in the run's precision."""

    def __init__(
        self,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        scaled: bool,
        dimensions: int,
        precision: torch.dtype,
    ) -> None:
        self.precision = precision
        full = LARGEST_BYTE if scaled else 1.0
        self.scale, self.shift = (
            torch.tensor(values, dtype=torch.float64)
            for values in (
                [1 / (full * each) for each in std or [1.0]],
                [-each / by for each, by in zip(mean or [0.0], std or [1.0], strict=True)],
            )
        )
        places = (-1,) + (1,) * max(dimensions - 1, 0)  # the first dimension of a sample is its channels
        if len(self.scale) > 1:
            self.scale, self.shift = self.scale.view(places), self.shift.view(places)
        self.scale, self.shift = self.scale.to(precision), self.shift.to(precision)
        self.nothing_to_do = not scaled and mean is None and std is None

    def __call__(self, values: Tensor) -> Tensor:
        values = values.to(self.precision)
        return values if self.nothing_to_do else values.mul(self.scale).add_(self.shift)


class Pictures:
    """Inputs that stand in files of images, decoded by processes of this rank's own, a step or two ahead."""

    ahead = 2

    def __init__(
        self,
        listing: dict[str, Tensor],
        data: dict[str, Any],
        decoder: Decoder,
        precision: torch.dtype,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.paths, self.ends = listing["paths"].numpy(), listing["ends"].numpy()
        self.digests = listing["digests"].numpy()
        self.decoder = decoder
        self.augmentation, self.seed = augmentation, seed
        self.elements = math.prod(data["input_shape"])
        self.normalize = _Normalize(data["mean"], data["std"], True, 3, precision)

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, rows: Tensor, epoch: int | None = None) -> Tensor:
        """(rows, 3, size, size), augmented as in that epoch, or the middle of each where it is None."""
        draws = None if epoch is None else offsets(self.seed, epoch, rows)
        images = self.decoder.take(self._key(rows, epoch), self._tasks(rows, draws)).permute(0, 3, 1, 2)
        if self.augmentation.on_pixels and draws is not None:
            images = crop_and_flip(images, self.augmentation, draws)
        return self.normalize(images.contiguous())

    def expect(self, rows: Tensor, epoch: int | None) -> None:
        """Begin to decode what will be asked for."""
        draws = None if epoch is None else offsets(self.seed, epoch, rows)
        self.decoder.expect(self._key(rows, epoch), self._tasks(rows, draws))

    def _key(self, rows: Tensor, epoch: int | None) -> Hashable:
        return id(self), epoch, rows.numpy().tobytes()

    def _tasks(self, rows: Tensor, draws: NDArray[np.float64] | None) -> list[Task]:
        scale = self.augmentation.crop_scale if draws is not None else None
        crops = (
            itertools.repeat(None) if scale is None or draws is None else draws[:, AREA : LEFT + 1].tolist()
        )
        return [
            (self._path(row), self.digests[row].tobytes().hex(), crop and [*scale, *crop] if scale else None)
            for row, crop in zip(rows.tolist(), crops, strict=False)
        ]

    def _path(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.paths[start : self.ends[row]].tobytes())


Features = Table | Pictures


def map_split(file: Path, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """A split's features and labels as they stand on disk, mapped and not read; another precision is a copy."""
    with safe_open(file, framework="pt") as tensors:
        features = tensors.get_tensor("features")
        return features.to(precision) if features.is_floating_point() else features, tensors.get_tensor(
            "labels"
        )


def open_splits(
    folder: Path, names: Sequence[str], parameters: Parameters, precision: torch.dtype
) -> dict[str, tuple[Features, Tensor]]:
    """Features and labels of each split that the data folder of a run describes."""
    data = read_json(folder / "data.json")
    files = {name: folder / f"{name}.safetensors" for name in names}
    how, seed = parameters.data.augmentation, parameters.seed
    if data.get("kind") == "tokens":
        return {
            name: _windows(_tensors(file)["tokens"], data["input_shape"][0]) for name, file in files.items()
        }
    if data.get("kind") == "pictures":
        rows = -(-parameters.training.global_batch_size // parameters.distributed.world_size)
        decoder = Decoder(data["folder"], data["input_shape"][1], data["resize"], data["workers"], rows)
        listings = {name: _tensors(file) for name, file in files.items()}
        return {
            name: (Pictures(listing, data, decoder, precision, how, seed), listing["labels"])
            for name, listing in listings.items()
        }
    tables = {name: _tensors(file) for name, file in files.items()}
    normal = data.get("mean"), data.get("std")
    return {
        name: (Table(table["features"], precision, *normal, augmentation=how, seed=seed), table["labels"])
        for name, table in tables.items()
    }


def _tensors(file: Path) -> dict[str, Tensor]:
    """Mapped, not read."""
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def _windows(tokens: Tensor, length: int) -> tuple[Features, Tensor]:
    """Consecutive stretches of ``length`` tokens, each labelled by the tokens that follow: two views, no copy."""
    count = max(len(tokens) - 1, 0) // length
    inputs, following = (tokens[start : start + count * length].view(count, length) for start in (0, 1))
    return Table(inputs, indices=True), following
