"""Compiles the device against the torch that is installed."""

import subprocess
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("device.cpp")


def build(folder: Path) -> Path:
    """The shared library; about 15 seconds."""
    home = Path(torch.__file__).parent
    target = folder / "device.so"
    include = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
    libraries = [f"-L{home}/lib", "-ltorch_cpu", "-lc10"]
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        *include,
        str(SOURCE),
        "-o",
        str(target),
        *libraries,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target
