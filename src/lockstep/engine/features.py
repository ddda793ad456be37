"""The inputs of a split as a rank reads them: mapped from disk, turned into what the model takes, batch by batch.

What is on disk stays as it came (bytes of pixels, numbers of tokens), and all ranks map the same pages; only the
rows of one batch are ever converted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lockstep.engine.augmentation import crop_and_flip, offsets
from lockstep.files import read_json
from lockstep.parameters import Augmentation

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
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
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


Features = Table


def map_split(file: Path, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """A split's features and labels as they stand on disk, mapped and not read; another precision is a copy."""
    with safe_open(file, framework="pt") as tensors:
        features = tensors.get_tensor("features")
        return features.to(precision) if features.is_floating_point() else features, tensors.get_tensor(
            "labels"
        )


def open_splits(
    folder: Path, names: Sequence[str], precision: torch.dtype, augmentation: Augmentation, seed: int
) -> dict[str, tuple[Features, Tensor]]:
    """Features and labels of each split that the data folder of a run describes."""
    data = read_json(folder / "data.json")
    return {
        name: _open(folder / f"{name}.safetensors", data, precision, augmentation, seed) for name in names
    }


def _open(
    file: Path, data: dict[str, Any], precision: torch.dtype, augmentation: Augmentation, seed: int
) -> tuple[Features, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        if data.get("kind") == "tokens":
            return _windows(tensors.get_tensor("tokens"), data["input_shape"][0])
        features, labels = tensors.get_tensor("features"), tensors.get_tensor("labels")
    mean, std = data.get("mean"), data.get("std")
    return Table(features, precision, mean=mean, std=std, augmentation=augmentation, seed=seed), labels


def _windows(tokens: Tensor, length: int) -> tuple[Features, Tensor]:
    """Consecutive stretches of ``length`` tokens, each labelled by the tokens that follow: two views, no copy."""
    count = max(len(tokens) - 1, 0) // length
    inputs, following = (tokens[start : start + count * length].view(count, length) for start in (0, 1))
    return Table(inputs, indices=True), following
