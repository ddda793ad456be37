"""Datasets of a user's own, for tests: small photographs of three kinds, and sequences with a label a place."""

from pathlib import Path

import numpy as np

from lockstep.datasets import Source


def images(seed, test_fraction, *, count: int = 60, size: int = 8, many: int = 3):
    """Bytes (count, 3, size, size): the class is the colour that is brightest."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % many
    pixels = draw.integers(0, 120, (count, 3, size, size), dtype=np.uint8)
    pixels[np.arange(count), labels % 3] += 100
    names = [f"kind {number}" for number in range(many)]
    return Source(pixels, labels, names, mean=[0.4, 0.4, 0.4], std=[0.25, 0.25, 0.25])


def echo(seed, test_fraction, *, count: int = 60, length: int = 6):
    """Indices (count, length), each labelled by itself plus one."""
    tokens = np.random.default_rng(seed).integers(0, 5, (count, length))
    return Source(tokens, (tokens + 1) % 5, list("abcde"))


def scaled(seed, test_fraction, *, file: str):
    """Numbers (40, 3), times what stands in a file."""
    draw = np.random.default_rng(seed)
    features = draw.standard_normal((40, 3)).astype(np.float32) * float(Path(file).read_text())
    return Source(features, np.arange(40, dtype=np.int64) % 2, ["even", "odd"])
