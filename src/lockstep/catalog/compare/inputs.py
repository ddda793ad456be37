"""What went into two runs and what came out, key by key: parameters, environment, data, results."""

import tomllib
from dataclasses import dataclass
from typing import Any

from lockstep.catalog import imports, status
from lockstep.catalog.provenance import file_of
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run
from lockstep.files import read_object, read_plain

LARGEST_LOCK_BYTES = 32 << 20
DEEPEST = 20
ABSENT = "absent"


@dataclass(frozen=True)
class Apart:
    """A key whose value differs between two runs; ``ABSENT`` where one has no such key."""

    key: str
    a: Any
    b: Any

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"key": self.key, "a": self.a, "b": self.b}


def flattened(value: object, prefix: str = "", depth: int = DEEPEST) -> dict[str, Any]:
    """Nested mappings as dotted keys; a list is one value."""
    if not isinstance(value, dict) or not value or not depth:
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= flattened(inner, f"{prefix}.{key}" if prefix else str(key), depth - 1)
    return leaves


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[Apart]:
    """The keys whose values differ, those of ``a`` first."""
    keys = [*a, *(key for key in b if key not in a)]
    apart = (Apart(key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys)
    return [each for each in apart if each.a != each.b or type(each.a) is not type(each.b)]


def parameters_of(run: Run) -> dict[str, Any]:
    """parameters.yaml as dotted keys; empty where it cannot be read. The user's own modules are not imported."""
    from lockstep import strict_yaml
    from lockstep.errors import ParametersError
    from lockstep.former_values import current

    try:
        content = read_plain(run.parameters, strict_yaml.MAX_BYTES)
        found = flattened(strict_yaml.parse(content, "parameters.yaml").value)
        return {key: current(key, value) for key, value in found.items()}
    except (OSError, ParametersError):
        return {}


def environment_of(run: Run, attempt: int = 1) -> dict[str, Any]:
    """Packages, machine, variables, and how the ranks were set up, as dotted keys, of one attempt."""
    provenance, plan = read_object(file_of(run, attempt)), read_object(run.plan)
    found = {name: mapping(provenance.get(name)) for name in ("packages", "machine", "environment")}
    decided = {
        key: plan[key]
        for key in ("world_size", "threads_per_rank", "cores", "device", "backend", "strategy", "servers")
        if key in plan
    }
    locked = mapping(provenance.get("uv_lock")).get("sha256")
    return flattened({**found, "plan": decided, "uv_lock": {"sha256": locked}})


def own_modules_of(run: Run, attempt: int = 1) -> dict[str, str]:
    """The SHA-256 of each of the user's own modules that an attempt imported.

    Of runs of earlier versions, those of the modules that the parameters name, which the plan holds.
    """
    recorded = mapping(imports.read(run, attempt).get("modules"))
    if not recorded and attempt == 1:
        named = mapping(read_object(run.plan).get("code")).values()
        recorded = {str(mapping(each).get("name")).partition(":")[0]: each for each in named}
    digests = {name: mapping(module).get("sha256") for name, module in recorded.items()}
    return {name: digest for name, digest in digests.items() if isinstance(digest, str)}


def distributions_of(run: Run, attempt: int = 1) -> dict[str, Any]:
    """Version and digest of the installed packages that an attempt imported (of all, where that is not known)."""
    installed = mapping(read_object(file_of(run, attempt)).get("distributions"))
    loaded = imports.read(run, attempt).get("packages")
    names = set(loaded) if isinstance(loaded, list) else None
    found: dict[str, Any] = {}
    for name, about in installed.items():
        modules = mapping(about).get("modules")
        if (
            names is None
            or not isinstance(modules, list)
            or name == "lockstep"
            or names & set(map(str, modules))
        ):
            found[name] = {key: mapping(about).get(key) for key in ("version", "sha256")}
    return flattened(found) if found else {}


def imported(a: Run, b: Run) -> list[Apart]:
    """What two runs imported that is not the same: the user's own modules, and installed packages."""
    own = differences(own_modules_of(a), own_modules_of(b))
    if not all(imports.read(run).get("complete") is True for run in (a, b)):
        own = [
            each for each in own if ABSENT not in (each.a, each.b)
        ]  # one ended before it imported the rest
    installed = [distributions_of(run) for run in (a, b)]
    packages = differences(*installed) if all(installed) else []
    return [
        *(Apart(f"imports.{each.key}", each.a, each.b) for each in own),
        *(Apart(f"distributions.{each.key}", each.a, each.b) for each in packages),
    ]


def locked_versions(run: Run) -> dict[str, str]:
    """The versions in the recorded uv.lock by package; where markers choose among several, all of them."""
    try:
        value = tomllib.loads(read_plain(run.path / "uv.lock", LARGEST_LOCK_BYTES).decode())
    except (OSError, ValueError, RecursionError):  # a TOML error is a ValueError
        return {}
    versions: dict[str, set[str]] = {}
    packages = value.get("package")
    for package in packages if isinstance(packages, list) else []:
        name, version = mapping(package).get("name"), mapping(package).get("version")
        if isinstance(name, str) and isinstance(version, str):
            versions.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(found)) for name, found in sorted(versions.items())}


def environment(a: Run, b: Run) -> list[Apart]:
    """What differs around two runs; packages of uv.lock by name, where the two are not the same file."""
    found = differences(environment_of(a), environment_of(b)) + imported(a, b)
    lock = next((each for each in found if each.key == "uv_lock.sha256"), None)
    if lock is not None and None not in (lock.a, lock.b):  # of one that has no lock file nothing is absent
        locked = differences(locked_versions(a), locked_versions(b))
        found += [Apart(f"uv_lock.{each.key}", each.a, each.b) for each in locked]
    return found


def data_of(run: Run) -> dict[str, Any]:
    """Identity, origin and digests of the splits, as dotted keys."""
    return flattened(read_object(run.data / "data.json", 2))


def results_of(run: Run) -> dict[str, Any]:
    """The figures that people compare runs by."""
    results = read_object(run.results)
    training, final = mapping(results.get("training")), at(results, "evaluation", "final")
    figures = {
        "steps": training.get("steps"),
        "test accuracy": at(final, "test", "accuracy"),
        "test loss": at(final, "test", "loss"),
        "validation accuracy": at(final, "validation", "accuracy"),
        "validation loss": at(final, "validation", "loss"),
        "train loss": at(final, "train", "loss"),
        "samples per second": training.get("samples_per_second"),
        "seconds of training": training.get("seconds"),
        "share of waiting": training.get("waiting_share"),
    }
    state = status.of(run)
    ended = {"status": state.word, "cause": state.cause}
    return {key: value for key, value in {**ended, **figures}.items() if value is not None}


def starting_point(run: Run) -> dict[str, Any]:
    """The digests of what a run started from: its parent's checkpoint, and the weights that it was given."""
    manifest = read_object(run.start / "manifest.json", 2)
    files = mapping(manifest.get("files"))
    found = {
        name: mapping(entry).get("sha256") for name, entry in files.items() if name.endswith(".safetensors")
    }
    given = at(read_object(run.plan), "weights", "sha256")
    return found if given is None else {**found, "model.weights": given}
