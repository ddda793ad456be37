"""Which files hold programs, by their names: what they say decides what a run computes."""

from pathlib import PurePosixPath

_SOURCE = {".py", ".pyi", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".rs", ".so", ".pth"}
_BUILD = {"pyproject.toml", "setup.py", "setup.cfg"}
_PROSE = {".md", ".rst"}
# parameters.yaml is recorded as what came of it, with all overrides.
_NEVER_READ = {
    "parameters.yaml",
    ".gitignore",
    ".gitattributes",
    ".gitmodules",
    ".lockstepignore",
    "LICENSE",
    "uv.lock",
}


def is_source(path: str) -> bool:
    """Whether a file of this name can change what a run computes: programs, and what builds and places them."""
    found = PurePosixPath(path)
    return found.suffix in _SOURCE or found.name in _BUILD


def may_be_read(path: str) -> bool:
    """Whether a program may read a file of this name while it runs: all but prose and what tools alone read."""
    found = PurePosixPath(path)
    return found.suffix not in _PROSE and found.name not in _NEVER_READ
