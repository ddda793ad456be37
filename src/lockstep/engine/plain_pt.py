"""A plain .safetensors file as the .pt that `torch.load` knows: `python -m lockstep.engine.plain_pt IN OUT`.

A process of its own, for the commands that do not import torch. OUT holds the state dict itself, which loads with
``weights_only=True`` and into ``module.load_state_dict``.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lockstep.files import fsync


def main() -> None:
    """Convert one file; OUT is replaced."""
    source, target = map(Path, sys.argv[1:])
    torch.save(load_file(source), target)
    with target.open("rb+") as file:
        fsync(file.fileno())


if __name__ == "__main__":
    main()
