"""What a run takes in besides its data: the weights that it starts from, and the user's own code."""

import shutil
from pathlib import Path
from typing import Any

from lockstep import full_disk, parameters, plugins
from lockstep.catalog import store
from lockstep.catalog.run import Run
from lockstep.errors import MissingPackage, UsageError
from lockstep.files import read_object, sha256_of, temporary_beside
from lockstep.orchestration import combinations, prepare
from lockstep.parameters import Parameters

WEIGHTS = (".safetensors", ".pt", ".pth")


def require(
    wanted: Parameters, folder: Path, inherited: Path | None = None, repeated: Run | None = None
) -> None:
    """Raise UsageError for what does not go together or is not there, before anything is written.

    The files of the data need not be there where a run is repeated whose own splits are.
    """
    combinations.check(wanted)
    try:
        prepare.require_files(wanted.data, folder)
    except UsageError as error:
        if (
            isinstance(error, MissingPackage)
            or repeated is None
            or not (repeated.data / "data.json").is_file()
        ):
            raise
    if wanted.model.weights is not None and inherited is None:
        weights_file(wanted.model.weights, folder)


def inherited_weights(parent: Run, wanted: Parameters) -> Path | None:
    """The weights that a parent kept, where its child names the same ones: their file may have moved since."""
    kept = read_object(parent.plan).get("weights")
    if not isinstance(kept, dict) or kept.get("from") != wanted.model.weights:
        return None
    file = parent.path / Path(str(kept.get("file"))).name
    return file if file.is_file() and sha256_of(file) == kept.get("sha256") else None


def weights_file(name: str, folder: Path) -> Path:
    """Where ``model.weights`` is, relative to where the command was started."""
    file = folder / Path(name).expanduser()
    if file.suffix not in WEIGHTS:
        raise UsageError(f"model.weights: found {name}, allowed: a file that ends in {', '.join(WEIGHTS)}")
    if not file.is_file():
        raise UsageError(f"model.weights: found no file {file}. Put it there, or give its path from {folder}")
    return file


def keep_weights(run: Run, wanted: Parameters, folder: Path) -> dict[str, Any] | None:
    """Bring the weights into the run, which is whole by itself from then on; what the plan says of them."""
    name = wanted.model.weights
    if name is None:
        return None
    kept = run.path / f"weights{'.safetensors' if Path(name).suffix == '.safetensors' else '.pt'}"
    if not kept.is_file():
        source = weights_file(name, folder)
        with temporary_beside(kept) as temporary:
            with full_disk.needing(temporary, source.stat().st_size):
                shutil.copyfile(source, temporary)
            digest = store.put(run.catalog, temporary)
        store.link(run.catalog, digest, kept)
    return {"from": name, "file": kept.name, "bytes": kept.stat().st_size, "sha256": sha256_of(kept)}


def own_code(wanted: Parameters) -> dict[str, dict[str, str]]:
    """File and SHA-256 of everything of the user's own that the parameters name, by key."""
    named = {
        "data.name": wanted.data.name,
        "model.name": wanted.model.name,
        "distributed.strategy.name": wanted.distributed.strategy.name,
    }
    found = {key: plugins.origin(name) for key, name in named.items() if plugins.is_own(name)}
    return {key: origin for key, origin in found.items() if origin is not None}


def text_of(wanted: Parameters) -> str:
    """What a run's parameters.yaml holds: every parameter, and above them where the user's own code came from."""
    heads = [
        f"# {key}: {code['name']} is {code['file']}, SHA-256 {code['sha256']}\n"
        for key, code in own_code(wanted).items()
    ]
    return "".join(heads) + parameters.dump(wanted)
