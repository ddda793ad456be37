"""Small files in the true formats of the datasets' publishers, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np

CIFAR_PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def idx(array: np.ndarray) -> bytes:
    """The idx format of an array of bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 60, test: int = 20, *, zipped: bool = False, dotted: bool = False):
    """Four files; the label of an image is where its bright column is."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    written = {}
    for name, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = draw.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), :, labels * 2 + 4] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"{name}-{kind}-ubyte"
            file = file.replace("-idx", ".idx") if dotted else file
            content = idx(array)
            if zipped:
                (folder / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / file).write_bytes(content)
            written[f"{name}-{kind[:6]}"] = array
    return written


def cifar_arrays(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3072) pixels with a bright band whose height tells the label, and labels."""
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    pixels = draw.integers(0, 120, (count, 3, 32, 32), dtype=np.uint8)
    for row in range(3):
        pixels[np.arange(count), :, labels * 3 + row] += 100
    return pixels.reshape(count, 3072), labels


def write_cifar_binary(folder: Path, each: int = 20):
    """Six files of records: a label and 3,072 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(CIFAR_PARTS):
        pixels, labels = cifar_arrays(each, seed)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, pixels]).tobytes())


def write_cifar_python(folder: Path, each: int = 20):
    """Six files as Python 2 with numpy 1 wrote them: the published ones opcode for opcode, with fewer pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(CIFAR_PARTS):
        pixels, labels = cifar_arrays(each, seed)
        (folder / name).write_bytes(python_batch(pixels, labels, f"training batch {seed + 1} of 5"))


def python_batch(pixels: np.ndarray, labels: np.ndarray, title: str) -> bytes:
    """Protocol 2, with the short strings and the memo of cPickle."""
    puts = iter(range(1, 1000))

    def put() -> bytes:
        return b"q" + bytes([next(puts)])

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode() + put()

    raw = pixels.tobytes()
    out = b"\x80\x02}" + put() + b"(" + text("batch_label") + text(title)
    out += text("labels") + b"]" + put() + b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    out += text("data") + b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
    out += b"K\x00\x85" + put() + text("b") + b"\x87" + put() + b"R" + put()
    out += (
        b"(K\x01" + b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", 3072) + b"\x86" + put()
    )
    out += b"cnumpy\ndtype\n" + put() + text("u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
    out += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
    out += b"\x89" + b"T" + struct.pack("<I", len(raw)) + raw + put() + b"t" + put() + b"b"
    names = b"".join(text(f"n{number}.png") for number in range(3))
    return out + text("filenames") + b"]" + put() + b"(" + names + b"e" + b"u."


def write_images(folder: Path, each: int = 6, splits: tuple[str, ...] = ("train", "val"), size: int = 24):
    """A folder for each class, JPEG and PNG of different sizes: one class is red, one green, one blue."""
    from PIL import Image

    draw = np.random.default_rng(1)
    for split in splits:
        for channel, name in enumerate(("apple", "leaf", "sky")):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(each):
                height, width = size + int(draw.integers(0, 9)), size + int(draw.integers(0, 9))
                pixels = draw.integers(0, 90, (height, width, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                ending = "png" if number % 3 == 0 else "JPEG"
                Image.fromarray(pixels).save(place / f"{number:03}.{ending}")
