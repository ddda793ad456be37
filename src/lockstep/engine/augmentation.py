"""Random crops and flips that depend on (seed, epoch, sample) alone, for a whole batch at once.

No generator is drawn from: each sample's numbers are a hash of its place, so they are the same on any rank, at any
world size, in any order, and after a resume.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lockstep.parameters import Augmentation
from lockstep.strategies.base import key

LANES = 8  # numbers a sample has in an epoch
DOWN, ACROSS, FLIP, AREA, RATIO, TOP, LEFT = range(7)


def offsets(seed: int, epoch: int, rows: Tensor) -> NDArray[np.float64]:
    """(samples, LANES) numbers in [0, 1), by the sample's row in the split."""
    base = np.uint64(key(seed, "augmentation", epoch))
    counter = rows.numpy().astype(np.uint64)[:, None] * np.uint64(LANES) + np.arange(LANES, dtype=np.uint64)
    mixed = _mix(_mix((counter + base).astype(np.uint64)) ^ base)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def crop_and_flip(images: Tensor, how: Augmentation, draws: NDArray[np.float64]) -> Tensor:
    """Pad every side with zeros and cut each image's own window out of that; mirror half of them.

    ``images`` is (samples, height, width) or (samples, channels, height, width), of any type; so is what returns.
    """
    samples, height, width = len(images), images.shape[-2], images.shape[-1]
    if padding := how.crop_padding:
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        down, across = (
            torch.from_numpy((draws[:, lane] * (2 * padding + 1)).astype(np.int64)) for lane in (DOWN, ACROSS)
        )
        windows = padded.unfold(-2, height, 1).unfold(-2, width, 1)  # (..., down, across, height, width)
        images = windows.movedim((-4, -3), (1, 2))[torch.arange(samples), down, across]
    if how.flip:
        mirrored = torch.from_numpy(draws[:, FLIP] < 0.5).view(-1, *[1] * (images.dim() - 1))
        images = torch.where(mirrored, images.flip(-1), images)
    return images
