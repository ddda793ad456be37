"""Modules that no installed package brought: the user's own code, as this process has imported it.

Installed packages are known by their versions, these only by the bytes of their files. A module stays as it was
loaded for as long as a process lives; where a file has changed since, ``forget_changed`` has it loaded again.
"""

import functools
import importlib.util
import os
import re
import site
import sys
import sysconfig
import time
from pathlib import Path
from types import ModuleType

from lockstep.files import sha256_of
from lockstep.linux import start_ticks

LOCKSTEP = str(Path(__file__).resolve().parent)
_PACKAGES = ("site-packages", "dist-packages")
_loaded: dict[str, str] = {}  # SHA-256 of a module's file when it was loaded, as far as that was seen


def own() -> dict[str, Path]:
    """The file of every imported module that stands outside of installed packages, the library and Lockstep."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = _file(module)
        if name not in ("__main__", "__mp_main__") and file is not None and _is_own(file):
            found[name] = Path(file)
    return found


def from_packages() -> list[str]:
    """The top-level names of all modules that were imported from installed packages, sorted."""
    names = set()
    for name, module in list(sys.modules.items()):
        file = _file(module)
        if file is not None and any(part in file for part in _PACKAGES):
            names.add(name.partition(".")[0])
    return sorted(names)


def note_loaded() -> None:
    """Remember what the files of modules hold that have just been imported."""
    for name, file in own().items():
        if name not in _loaded and (digest := digest_of(file)) is not None:
            _loaded[name] = digest


def loaded_digest(name: str) -> str | None:
    """The SHA-256 of a module's file when it was loaded; None where that was not seen."""
    return _loaded.get(name)


def forget_changed() -> list[str]:
    """Drop modules whose files changed since they were loaded, and those that use them; returns their names."""
    files = own()
    changed = {name for name, file in files.items() if _has_changed(name, file)}
    users = changed
    while users:
        imports = _imports_of(changed)
        users = {
            name
            for name in files.keys() - changed
            if name.rpartition(".")[0] in changed
            or imports.search(_text(files[name]))
            or _uses(sys.modules[name], changed)
        }
        changed |= users
    for name in changed:
        # Python would take the compiled file for good where an edit left the size and the second of the source.
        Path(importlib.util.cache_from_source(str(files[name]))).unlink(missing_ok=True)
        sys.modules.pop(name, None)
        _loaded.pop(name, None)
    importlib.invalidate_caches()
    return sorted(changed)


def _imports_of(names: set[str]) -> re.Pattern[str]:
    """Statements that import one of these modules: what is taken from one may be a number, which knows no module."""
    last = "|".join(re.escape(name.rpartition(".")[2]) for name in names)
    return re.compile(rf"^\s*(from|import)\b.*\b({last})\b", re.MULTILINE)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def digest_of(file: Path) -> str | None:
    """The SHA-256 of a file; None where it cannot be read."""
    try:
        return sha256_of(file)
    except OSError:
        return None


def _has_changed(name: str, file: Path) -> bool:
    digest = digest_of(file)
    if digest is None:
        return False  # it is gone: what was loaded is all there is
    if name in _loaded:
        return digest != _loaded[name]
    return file.stat().st_mtime > _began()  # imported by others, and perhaps before the change


def _began() -> float:
    """When this process was started, in seconds since the epoch."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return boot + (start_ticks(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")


def _uses(module: ModuleType, names: set[str]) -> bool:
    """Whether a module's globals hold one of these modules, or something that was defined in one."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            if value.__name__ in names:
                return True
        elif getattr(type(value), "__module__", None) in names or _defined_in(value) in names:
            return True
    return False


def _defined_in(value: object) -> str | None:
    found = getattr(value, "__module__", None) if isinstance(value, type) or callable(value) else None
    return found if isinstance(found, str) else None


def _file(module: ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _is_own(file: str) -> bool:
    if any(f"/{part}/" in file for part in _PACKAGES) or not Path(file).is_absolute():
        return False
    return not file.startswith(_not_own())


@functools.cache
def _not_own() -> tuple[str, ...]:
    paths = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib")} | {
        LOCKSTEP,
        site.getusersitepackages(),
    }
    return tuple(f"{path}/" for path in paths if path)
