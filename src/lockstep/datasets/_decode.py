"""A program that decodes images for one rank. It imports neither torch nor numpy.

It reads one task a line (JSON: slot, path, SHA-256, crop), writes the pixels into memory that it shares with the
rank, and answers with the slot, and what went wrong where something did. It dies with the rank.
"""

import hashlib
import io
import json
import math
import mmap
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from lockstep.linux import die_with_parent

RATIOS = (
    math.log(3 / 4),
    math.log(4 / 3),
)  # of width to height, as the field has it: uniform in the logarithm
Box = tuple[float, float, float, float]


def main() -> None:
    """Serve until the rank closes the pipe."""
    descriptor, parent, size, resize = map(int, sys.argv[1:5])
    folder = Path(sys.argv[5])
    die_with_parent(parent)
    memory = mmap.mmap(descriptor, 0)
    image_bytes = 3 * size * size
    for line in sys.stdin.buffer:
        slot, path, digest, crop = json.loads(line)
        answer: dict[str, Any] = {"slot": slot}
        try:
            memory[slot * image_bytes : (slot + 1) * image_bytes] = pixels(
                folder / path, digest, size, resize, crop
            )
        except Exception as error:  # whatever a decoder makes of a damaged file
            answer["error"] = f"{folder / path}: {error}"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def pixels(path: Path, digest: str, size: int, resize: int, crop: list[float] | None) -> bytes:
    """(size, size, 3) bytes of an image, whose file must still have that SHA-256."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("it is not the file that was prepared: it changed under this run. Start a new one")
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
        width, height = image.size
        box = part_of(width, height, crop) if crop else middle(width, height, size / resize)
        # A JPEG decodes faster at a half, a quarter or an eighth of its size, where that is still large enough.
        scale = max(size / (box[2] - box[0]), size / (box[3] - box[1]))
        if scale < 1:
            image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
        drawn_width, drawn_height = image.size
        x, y = drawn_width / width, drawn_height / height
        scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        return in_bytes(image).resize((size, size), Image.Resampling.BILINEAR, box=scaled).tobytes()


def in_bytes(image: Image.Image) -> Image.Image:
    """The image in three channels of a byte. Pillow would cut greys of 16 bits off at 255, so nearly all to white."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda grey: grey * (1 / 257)).convert("L")
    return image.convert("RGB")


def middle(width: int, height: int, share: float) -> Box:
    """The square in the middle whose side is that share of the shorter side."""
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def part_of(width: int, height: int, crop: list[float]) -> Box:
    """A part of random area, shape and place: crop is the least and the largest area, and four draws from [0, 1).

    Szegedy et al., "Going deeper with convolutions" (2015), section 6. What would stick out is cut to the image.
    """
    least, most, by_area, by_ratio, down, across = crop
    area = width * height * (least + (most - least) * by_area)
    ratio = math.exp(RATIOS[0] + (RATIOS[1] - RATIOS[0]) * by_ratio)
    part_width = max(min(math.sqrt(area * ratio), float(width)), 1.0)
    part_height = max(min(math.sqrt(area / ratio), float(height)), 1.0)
    left, top = across * (width - part_width), down * (height - part_height)
    return left, top, min(left + part_width, width), min(top + part_height, height)


if __name__ == "__main__":
    main()
