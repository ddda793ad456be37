"""provenance.json: which code, packages, machine and command made a run; and source.patch, what git had not.

Written beside start-up in a thread, so it imports nothing that is large and asks installed packages for their
metadata only. Where git is absent, refuses or is slow, the record says so, and the run goes on.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lockstep import linux
from lockstep.catalog import distributions, git, ignored, uncommitted
from lockstep.catalog.events import utc_now
from lockstep.catalog.run import Run, project_root
from lockstep.files import printable, readable, write_atomically, write_json

PACKAGES = ("lockstep", "torch", "numpy", "runnable", "pydantic", "safetensors", "scikit-learn", "pillow")
_ENVIRONMENT = re.compile(
    r"LOCKSTEP_\w+|(OMP|MKL|OPENBLAS|NUMEXPR)_\w+|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|LAUNCH_BLOCKING)|KMP_\w+"
    r"|CUBLAS_WORKSPACE_CONFIG|ATEN_CPU_CAPABILITY|(DNNL|ONEDNN)_MAX_CPU_ISA|(GLOO|NCCL)_SOCKET_IFNAME|PYTHON(HASHSEED|OPTIMIZE|UNBUFFERED)|LANG|LC_ALL|TZ"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|KEY")
_FEATURE = re.compile(r"avx\w*|amx\w*|fma\w*|f16c|sse4\w*|sve\w*|asimd\w*|bf16|i8mm|neon")
_LONGEST_VALUE = 1000
_MOST_LEFT_OUT = 100


def write(
    run: Run,
    argv: Sequence[str],
    folder: Path,
    parent: dict[str, Any] | None = None,
    with_patch: bool = True,
    attempt: int = 1,
) -> dict[str, Any]:
    """Write provenance.json, source.patch where there are changes, and a copy of uv.lock; returns the first.

    ``folder`` is where the command was started: its repository and its lock file are what is recorded. A
    later attempt in the same run writes beside the first (provenance.attempt-2.json), never over it.
    """
    record = {
        "run_id": run.run_id,
        "attempt": attempt,
        "time": utc_now(),
        "argv": [readable(argument) for argument in argv],
        "cwd": readable(str(folder)),
        "parent": parent,
        "git": _git(run, folder, with_patch, attempt),
        "uv_lock": _uv_lock(run, folder, attempt),
        **surroundings(),
        "distributions": distributions.installed(),
    }
    write_json(file_of(run, attempt), record)
    return record


def not_recorded(record: dict[str, Any]) -> list[str]:
    """What the record of the code does not hold, a sentence each: told while the run can still be stopped."""
    code = record["git"]
    found = []
    if count := code.get("left_out_count", 0):
        first = code["left_out"][:3]
        names = ", ".join(f"{printable(each['path'])} ({each['reason']})" for each in first)
        more = f" and {count - 3} more" if count > 3 else ""
        secret = [each["reason"] == uncommitted.CREDENTIALS for each in code["left_out"]]
        if all(secret):
            advice = f"Have git ignore them; for what is no credential, put !PATTERN into {ignored.NAME}"
        elif any(secret):
            advice = (
                "Have git ignore what looks like credentials, and commit the others or have git ignore them; for "
                f"what is no credential, put !PATTERN into {ignored.NAME}"
            )
        else:
            advice = "Commit them or have git ignore them"
        found.append(
            f"source.patch leaves out {count} changed file{'' if count == 1 else 's'}: {names}{more}; "
            f"provenance.json names them. {advice}"
        )
    for key in ("patch_absent", "untracked_absent"):
        if code.get(key) not in (None, "switched off"):
            what = "uncommitted changes" if key == "patch_absent" else "untracked files"
            found.append(f"{what} of the code are not recorded: {code[key]}")
    return found


def file_of(run: Run, attempt: int) -> Path:
    """Where the provenance of an attempt is."""
    return _name(run.provenance, attempt)


def surroundings() -> dict[str, Any]:
    """Packages, machine and variables, as they are now and as a record keeps them."""
    return {"packages": _packages(), "machine": _machine(), "environment": _environment()}


def _name(path: Path, attempt: int) -> Path:
    return path if attempt == 1 else path.with_name(f"{path.stem}.attempt-{attempt}{path.suffix}")


def _git(run: Run, folder: Path, with_patch: bool, attempt: int) -> dict[str, Any]:
    """The state of the code. ``absent`` says why there is none, ``patch_absent`` why there is no patch."""
    try:
        repository = git.open_repository(folder)
    except git.GitError as error:
        return {"absent": readable(str(error))}
    commit = repository.line("rev-parse", "--verify", "--quiet", "HEAD")
    record: dict[str, Any] = {
        "commit": commit,
        "branch": repository.line("symbolic-ref", "--quiet", "--short", "HEAD"),
        "remote": readable(git.remote_url(repository) or "") or None,
        "folder": repository_folder(repository, folder),
        "dirty": None,
        "patch": None,
    }
    if not with_patch:
        return {**record, "patch_absent": "switched off"}
    where = run.live if run.live.is_dir() else None  # what a kill leaves there goes with the next start
    try:
        with tempfile.TemporaryDirectory(prefix="lockstep-git-", dir=where) as scratch:
            changes = uncommitted.collect(repository, commit, Path(scratch), run.catalog)
    except git.GitError as error:
        return {**record, "patch_absent": readable(str(error))}
    record |= {
        "dirty": changes.dirty,
        "tree": changes.tree,
        "staged": changes.staged,
        "unstaged": changes.unstaged,
        "untracked": changes.untracked,
        "left_out": [each.as_dict() for each in changes.left_out[:_MOST_LEFT_OUT]],
        "left_out_count": len(changes.left_out),
        "left_out_sha256": changes.left_out_sha256,
    }
    if changes.untracked_absent is not None:
        record["untracked_absent"] = readable(changes.untracked_absent)
    if changes.patch:
        file = _name(run.patch, attempt)
        write_atomically(file, changes.patch)
        digest = hashlib.sha256(changes.patch).hexdigest()
        record["patch"] = {"file": file.name, "bytes": len(changes.patch), "sha256": digest}
    return record


def repository_folder(repository: git.Git, folder: Path) -> str | None:
    """Where in the repository the command was started: "." at its top; None where it cannot be told."""
    try:
        return readable(str(folder.resolve().relative_to(repository.folder.resolve())))
    except ValueError:
        return None


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    versions["uv"] = _uv_version()
    return versions


def _uv_version() -> str | None:
    """The uv that made the environment, which notes itself there."""
    found = re.search(r"(?m)^uv\s*=\s*(\S+)", _read(Path(sys.prefix) / "pyvenv.cfg"))
    return found.group(1) if found else None


def _uv_lock(run: Run, folder: Path, attempt: int) -> dict[str, Any] | None:
    file = project_root(folder) / "uv.lock"
    try:
        content = file.read_bytes()
    except OSError:
        return None
    write_atomically(_name(run.path / "uv.lock", attempt), content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _machine() -> dict[str, Any]:
    system = os.uname()
    pretty = re.search(r'(?m)^PRETTY_NAME="?([^"\n]*)', _read(Path("/etc/os-release")))
    model = re.search(r"(?m)^model name\s*: *(.*)$", _read(Path("/proc/cpuinfo"), 1 << 14))
    return {
        **_gpus(),
        "host": system.nodename,
        "os": pretty.group(1) if pretty else system.sysname,
        "kernel": f"{system.sysname} {system.release}",
        "architecture": system.machine,
        "processor": model.group(1) if model else None,
        "processor_features": _features(),
        "cores": linux.cores(),
        "cores_of_machine": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }


def _gpus() -> dict[str, Any]:
    """The GPUs by the driver's own words, where there are any."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"(?m)^Model:\s*(.*)$", _read(file))
        models.append(found.group(1).strip() if found else "unknown")
    driver = re.search(r"Kernel Module\D*([\d.]+)", _read(Path("/proc/driver/nvidia/version")))
    return {"gpus": models, "gpu_driver": driver.group(1) if driver else None} if models else {}


def _features() -> list[str]:
    """The instruction sets that mathematical libraries choose their code by: other ones, other bits."""
    flags = re.search(r"(?m)^(?:flags|Features)\s*: *(.*)$", _read(Path("/proc/cpuinfo"), 1 << 14))
    found = flags.group(1).split() if flags else []
    return sorted(name for name in found if _FEATURE.fullmatch(name))


def _read(path: Path, limit: int = 1 << 16) -> str:
    try:
        with path.open("rb") as file:
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


def _environment() -> dict[str, str]:
    """What steers a run, by an allow-list; a name that sounds like a secret is left out even then."""
    return {
        name: readable(value[:_LONGEST_VALUE])
        for name, value in sorted(os.environ.items())
        if _ENVIRONMENT.fullmatch(name) and not _SECRET.search(name)
    }
