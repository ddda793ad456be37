"""What must hold before anything is started: the system, the packages, and that this command was started once."""

import os
import resource
from collections.abc import Mapping
from importlib.util import find_spec

from lockstep.errors import UsageError
from lockstep.linux import require_linux

# What training imports, and the package that brings it: those of pyproject.toml.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "rich": "rich",
    "runnable": "runnable",
    "safetensors": "safetensors",
}
LEAST_DESCRIPTORS, WANTED_DESCRIPTORS = 64, 1024
# Variables that launchers set in each process that they start: its number, and how many there are. The batch script
# of Slurm itself has a SLURM_PROCID and a SLURM_NTASKS too; only what srun starts has a number of tasks in its step.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
}


def require_training(what: str) -> None:
    """Raise UsageError where processes cannot be started, before anything is written."""
    require_linux(what)
    require_started_once(what)
    require_packages(what)
    require_descriptors(what)


def require_descriptors(what: str) -> None:
    """Take as many open files as this process may have, where it was given few; refuse where even those are too few.

    A rank has some twenty of its own and three for each other rank, and inherits the limit from here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_DESCRIPTORS:
        soft = hard if 0 <= hard < WANTED_DESCRIPTORS else WANTED_DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < LEAST_DESCRIPTORS:
        raise UsageError(
            f"{what} may open {soft} files at once here (ulimit -n), needed: {LEAST_DESCRIPTORS} or more. "
            f"Start it with more: ulimit -n {WANTED_DESCRIPTORS}"
        )


def require_started_once(what: str, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to be one of several: each would do the whole work by itself, beside the others."""
    for launcher, (number, count) in LAUNCHERS.items():
        words = environment.get(number, ""), environment.get(count, "")
        if all(word.isascii() and word.isdecimal() for word in words) and int(words[1]) > 1:
            raise UsageError(
                f"{what} starts its ranks by itself, and found {number}={words[0]} and {count}={words[1]}: a launcher "
                f"such as {launcher} has started this command {words[1]} times, and each would be a run of its own. "
                f"Start it once, without {launcher}, with distributed.world_size={words[1]}; where there is no "
                f"launcher, begin the command with: env -u {number} -u {count}"
            )


def require_packages(what: str) -> None:
    """Refuse where a package is missing that a rank, or the process that starts it, would import."""
    missing = [package for module, package in PACKAGES.items() if not _is_there(module)]
    if missing:
        names = " ".join(missing)
        raise UsageError(
            f"{what} needs {' and '.join(missing)}, and found no such package installed. Install it: uv sync where "
            f"lockstep is a dependency of the project, or uv pip install {names}"
        )


def _is_there(module: str) -> bool:
    """Whether it can be found, without importing it; a folder that merely has its name is no package."""
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None
