"""From a dataset's samples to three splits on disk, made once per identity and then only linked."""

import contextlib
import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lockstep import __version__, full_disk, plugins
from lockstep.catalog import store
from lockstep.catalog.run import Run
from lockstep.datasets import Pictures, Source, Tokens
from lockstep.errors import CorruptRecord
from lockstep.files import digest_of, read_json, readable, sha256_of, temporary_beside, write_json
from lockstep.orchestration import splits
from lockstep.orchestration.splits import SPLITS
from lockstep.parameters import Data

# Options of ours that change how the data is read, and not what it is.
READING = ("mean", "std", "workers")
PLACES = ("folder", "path")  # where its files are: what they hold counts


def prepare(run: Run, data: Data, seed: int, folder: Path) -> dict[str, Any]:
    """Fill the run's data folder and return data.json's content.

    The files stand once in the catalog's store, named by their digest; the run gets hard links. A second
    run with the same identity (dataset, options, fractions, seed, the code's digest, the files read) prepares
    nothing.
    """
    function = plugins.load("datasets", data.name)
    ours = not plugins.is_own(data.name)
    with contextlib.chdir(folder):  # relative paths are those of where the command was started
        files = _state(function, data) if ours else None
    identity = {
        "dataset": data.name,
        "options": {
            name: value for name, value in data.options.items() if not (ours and name in (*READING, *PLACES))
        },
        "validation_fraction": data.validation_fraction,
        "test_fraction": data.test_fraction,
        "seed": seed,
        "code": _source_digest(function),
        "lockstep": __version__,
        "files": files,
    }
    key = digest_of(identity)
    # A user's own function may read files that this identity knows nothing of, so it is called every time.
    known = store.recall(run.catalog, key) if ours else None
    if known is not None:
        splits.check_augmentation(known, data.augmentation)
        reading = {name: data.options[name] for name in READING if name in data.options}
        try:
            return _link(run, known | reading)
        except (CorruptRecord, FileNotFoundError):
            pass  # the store lost or damaged it: made anew below
    with contextlib.chdir(folder):
        source = function(seed, data.test_fraction, **data.options)
    splits.check(source, data.name)
    if isinstance(source, Pictures):  # by what the files hold, and not by where and when they were put there
        identity["files"] = hashlib.sha256(
            os.fsencode("\0".join(source.paths)) + source.digests.tobytes()
        ).hexdigest()
    splits.check_augmentation(describe(source), data.augmentation)
    description = _write(run, source, data, seed)
    if not ours:  # what its function read is known by what came of it alone
        identity["files"] = {name: file["sha256"] for name, file in description["files"].items()}
    description |= {"identity": digest_of(identity), "made_from": identity}
    store.remember(run.catalog, key, description)
    return _link(run, description)


def as_it_was(run: Run, repeated: Run) -> dict[str, Any]:
    """Give a run the splits of the one that it repeats, from the store or that run's own folder; data.json's content.

    Raises CorruptRecord where neither holds the bytes that were recorded.
    """
    description: dict[str, Any] = read_json(repeated.data / "data.json")
    for name in SPLITS:
        digest, target = description["files"][name]["sha256"], run.data / f"{name}.safetensors"
        try:
            store.link(run.catalog, digest, target)
        except (CorruptRecord, FileNotFoundError):
            with temporary_beside(target) as copy:
                shutil.copyfile(repeated.data / target.name, copy)
                if sha256_of(copy) != digest:
                    raise CorruptRecord(f"{repeated.data / target.name} is not what was prepared") from None
                store.put(run.catalog, copy)
            store.link(run.catalog, digest, target)
    write_json(run.data / "data.json", description)
    return description


def require_files(data: Data, folder: Path) -> None:
    """Raise UsageError where a dataset of ours reads files that are not there. Nothing is written."""
    if plugins.is_own(data.name):
        return
    require = _beside(plugins.load("datasets", data.name), "require")
    if require is not None:
        with contextlib.chdir(folder):
            require(**data.options)


def _state(function: Callable[..., Any], data: Data) -> str | None:
    """A digest of what stands in the files that a dataset reads; None where it reads none."""
    state = _beside(function, "state")
    return None if state is None else str(state(**data.options))


def _beside(function: Callable[..., Any], name: str) -> Callable[..., Any] | None:
    """A function of the same file, by its name; not one that the file only imports."""
    found = getattr(inspect.getmodule(function), name, None)
    return found if getattr(found, "__module__", None) == function.__module__ else None


def _source_digest(function: object) -> str:
    """Of the file that a dataset's function stands in: other code, other data."""
    module = inspect.getmodule(function)
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest() if module else ""
    except (OSError, TypeError):  # no file, or no Python
        return ""


def _write(run: Run, source: Source | Tokens | Pictures, data: Data, seed: int) -> dict[str, Any]:
    from safetensors.numpy import save_file  # and with it numpy: not before there is something to write

    files = {}
    about = describe(source)
    parts = splits.tables(source, data.validation_fraction, data.test_fraction, seed)
    splits.refuse_empty({name: samples(tensors, about) for name, tensors in parts.items()}, data)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=run.data) as folder:
        for name, tensors in parts.items():
            file = Path(folder) / f"{name}.safetensors"
            with full_disk.needing(run.data / file.name, sum(each.nbytes for each in tensors.values())):
                save_file(tensors, file)
            size = file.stat().st_size
            count = samples(tensors, about)
            files[name] = {"sha256": store.put(run.catalog, file), "bytes": size, "samples": count}
    return {"files": files, **about}


def describe(source: Source | Tokens | Pictures) -> dict[str, Any]:
    """What the ranks have to know to read a split."""
    classes = [readable(str(name)) for name in source.classes]
    if isinstance(source, Tokens):
        return {
            "kind": "tokens",
            "input_shape": [source.context_length],
            "classes": classes,
            "token": source.token,
        }
    about = {"classes": classes, "mean": source.mean, "std": source.std}
    if isinstance(source, Pictures):
        size = source.image_size
        own = {"folder": str(source.folder), "resize": source.resize, "workers": source.workers}
        return {"kind": "pictures", "input_shape": [3, size, size], **about, **own}
    return {"kind": "table", "input_shape": list(source.features.shape[1:]), **about}


def samples(tensors: splits.Table, about: dict[str, Any]) -> int:
    """How many samples a split's file holds."""
    if about["kind"] == "tokens":
        return max(len(tensors["tokens"]) - 1, 0) // int(about["input_shape"][0])
    return len(tensors["labels"])


def _link(run: Run, description: dict[str, Any]) -> dict[str, Any]:
    for name in SPLITS:
        store.link(run.catalog, description["files"][name]["sha256"], run.data / f"{name}.safetensors")
    write_json(run.data / "data.json", description)
    return description


def verify(run: Run) -> None:
    """Compare the splits with the digests in data.json; CorruptRecord names what differs."""
    for name, file in read_json(run.data / "data.json")["files"].items():
        path = run.data / f"{name}.safetensors"
        if not path.is_file() or sha256_of(path) != file["sha256"]:
            raise CorruptRecord(
                f"{path} is not what was prepared (SHA-256 {file['sha256'][:12]}... expected): the data changed "
                "under this run. Start a new one; preparing makes the file anew"
            )
