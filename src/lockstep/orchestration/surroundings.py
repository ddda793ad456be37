"""What a repeated run would meet here that it did not meet there, and the interpreter that it is run with."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lockstep import own_modules
from lockstep.catalog import git, imports, provenance
from lockstep.catalog.compare import inputs
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run, project_root
from lockstep.errors import UsageError
from lockstep.files import read_object
from lockstep.orchestration.worktree import Recreated

# Variables that decide how mathematical libraries compute. A record's are set again, others of these are not.
ARITHMETIC = (
    "OMP_NUM_THREADS",
    "OMP_DYNAMIC",
    "OMP_SCHEDULE",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "MKL_CBWR",
    "OPENBLAS_NUM_THREADS",
    "KMP_DETERMINISTIC_REDUCTION",
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
)
_HARMLESS = re.compile(r"[\w.,:+-]{0,100}")
_DRIFT = re.compile(r"packages\.(?!uv$|lockstep$).*|machine\.(processor|processor_features|architecture)")
SYNC_SECONDS = 3600
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Interpreter:
    """``kind`` is current or uv; ``words`` say why."""

    kind: str
    python: str
    words: str


def drift(run: Run) -> list[str]:
    """What differs here from what was recorded, as far as bits can depend on it."""
    record = read_object(run.provenance)
    if not record:
        return ["packages and machine were not recorded: what differs here cannot be told"]
    now = provenance.surroundings()
    before, here = (
        inputs.flattened({key: mapping(each.get(key)) for key in ("packages", "machine")})
        for each in (record, now)
    )
    return [
        f"{each.key}: {_brief(each.a)} then, {_brief(each.b)} here"
        for each in inputs.differences(before, here)
        if _DRIFT.fullmatch(each.key) and each.a != inputs.ABSENT
    ]


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def other_packages(run: Run) -> list[str]:
    """Packages that are installed here in other versions than the run's record and its uv.lock name."""
    record = mapping(read_object(run.provenance).get("packages"))
    now = provenance.surroundings()["packages"]
    found = {
        name: f"{name} {version} then, {now.get(name) or 'absent'} here"
        for name, version in record.items()
        if name not in ("uv", "lockstep") and version is not None and now.get(name) != version
    }
    installed = {
        re.sub(r"[-_.]+", "-", each.name).lower(): each.version
        for each in metadata.distributions()
        if each.name
    }
    for key, version in inputs.distributions_of(run).items():
        name, _, what = key.rpartition(".")
        if what == "version" and name not in ("uv", "lockstep") and installed.get(name) != version:
            found.setdefault(name, f"{name} {version} then, {installed.get(name) or 'absent'} here")
    for name, versions in inputs.locked_versions(run).items():
        here = installed.get(name)
        if here is not None and here not in versions.split(", ") and name not in found and name != "lockstep":
            found[name] = f"{name} {versions} in uv.lock, {here} here"
    return list(found.values())


def interpreter(run: Run, at: Recreated, choice: str) -> Interpreter:
    """The interpreter for a run's code: this one where the packages are the recorded ones, else one that uv makes."""
    other = other_packages(run)
    if choice == "current" or (choice == "auto" and not other):
        words = "the packages installed here"
        words += (
            ", which are the recorded ones"
            if not other
            else f", although they differ ({'; '.join(other[:5])})"
        )
        return Interpreter("current", sys.executable, words)
    return _synced(run, at, other)


def _synced(run: Run, at: Recreated, other: list[str]) -> Interpreter:
    why = f"{'; '.join(other[:5])}{' and others' if len(other) > 5 else ''}" if other else "as asked for"
    lock, uv = run.path / "uv.lock", shutil.which("uv")
    advice = "--packages current runs it with those installed here"
    if uv is None or not lock.is_file():
        missing = "uv is not installed" if uv is None else "the run has no uv.lock"
        raise UsageError(f"the run's packages are not those installed here ({why}), and {missing}; {advice}")
    project = _project(at)
    shutil.copyfile(lock, project / "uv.lock")
    target = at.scratch / "venv"
    command = [uv, "sync", "--frozen", "--project", str(project)]
    version = mapping(read_object(run.provenance).get("packages")).get("python")
    if isinstance(version, str) and re.fullmatch(r"\d+\.\d+\.\d+", version):
        command += ["--python", version]
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment = kept | {"UV_PROJECT_ENVIRONMENT": str(target)}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SYNC_SECONDS,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"uv sync --frozen of the recorded uv.lock: {error}; {advice}") from None
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-3:])
        raise UsageError(f"uv sync --frozen of the recorded uv.lock failed: {last[:1000]}; {advice}")
    return Interpreter(
        "uv", str(target / "bin" / "python"), f"an environment of the recorded uv.lock ({why})"
    )


def bring_lock(run: Run, at: Recreated) -> None:
    """Put the run's lock file where its code looks for one, where git did not hold it."""
    lock, target = run.path / "uv.lock", project_root(at.folder) / "uv.lock"
    if lock.is_file() and target.is_relative_to(at.root) and not os.path.lexists(target):
        shutil.copyfile(lock, target)


def other_modules(run: Run, top: Path) -> list[str]:
    """Modules of the user's own that the run imported from outside of its repository, and that are others now."""
    found = []
    for name, module in mapping(imports.read(run).get("modules")).items():
        file, digest = mapping(module).get("file"), mapping(module).get("sha256")
        if not isinstance(file, str) or Path(file).is_relative_to(top):
            continue
        now = own_modules.digest_of(Path(file))
        if now != digest:
            how = "is not here" if now is None else "holds other code than then"
            found.append(f"module {name}: {file} {how}")
    return found


def _project(at: Recreated) -> Path:
    """The folder in the recorded code whose pyproject.toml the run's uv.lock belongs to."""
    for folder in (at.folder, *at.folder.parents):
        if not folder.is_relative_to(at.root):
            break
        if (folder / "pyproject.toml").is_file():
            return folder
    raise UsageError("the recorded code has no pyproject.toml that its uv.lock could belong to")


def environment(run: Run, at: Recreated, ours: bool = True) -> dict[str, str]:
    """The variables for the repeated run: the recorded ones that steer arithmetic, its code before all other.

    With ``ours``, code that holds no lockstep of its own is run by this one.
    """
    recorded = mapping(read_object(run.provenance).get("environment"))
    found = {key: value for key, value in os.environ.items() if key not in ARITHMETIC}
    for name in ARITHMETIC:
        value = recorded.get(name)
        if isinstance(value, str) and _HARMLESS.fullmatch(value):
            found[name] = value
    folders = dict.fromkeys([at.root / "src", at.folder / "src", at.folder, at.root])
    path = [str(folder) for folder in folders if folder.is_dir()]
    path += [str(PACKAGE.parent)] if ours else []
    # What else was on the path then, after the recorded code; not the repository as it is today.
    today = _top_of(Path.cwd())
    theirs = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    path += [each for each in theirs if today is None or not Path(each).absolute().is_relative_to(today)]
    found["PYTHONPATH"] = os.pathsep.join(path)
    return found


def _top_of(folder: Path) -> Path | None:
    try:
        return git.open_repository(folder).folder
    except git.GitError:
        return None
