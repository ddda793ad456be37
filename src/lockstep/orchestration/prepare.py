"""From a dataset's samples to three splits on disk, made once per identity and then only linked."""

import contextlib
import hashlib
import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep import __version__, plugins
from lockstep.catalog import store
from lockstep.catalog.run import Run
from lockstep.datasets import Source
from lockstep.errors import CorruptRecord, UsageError
from lockstep.files import digest_of, read_json, sha256_of, write_json
from lockstep.parameters import Data

SPLITS = ("train", "validation", "test")


def prepare(run: Run, data: Data, seed: int, folder: Path) -> dict[str, Any]:
    """Fill the run's data folder and return data.json's content.

    The files stand once in the catalog's store, named by their digest; the run gets hard links. A second
    run with the same identity (dataset, options, fractions, seed, the code's digest) prepares nothing.
    """
    function = plugins.load("datasets", data.name)
    identity = {
        "dataset": data.name,
        "options": data.options,
        "validation_fraction": data.validation_fraction,
        "test_fraction": data.test_fraction,
        "seed": seed,
        "code": _source_digest(function),
        "lockstep": __version__,
    }
    key = digest_of(identity)
    # A user's own function may read files that this identity knows nothing of, so it is called every time.
    known = None if plugins.is_own(data.name) else store.recall(run.catalog, key)
    if known is not None:
        try:
            return _link(run, known)
        except (CorruptRecord, FileNotFoundError):
            pass  # the store lost or damaged it: made anew below
    with contextlib.chdir(folder):  # relative paths are those of where the command was started
        source = function(seed, data.test_fraction, **data.options)
    _check(source, data.name)
    description = _write(run, source, data, seed) | {"identity": key, "made_from": identity}
    store.remember(run.catalog, key, description)
    return _link(run, description)


def _source_digest(function: object) -> str:
    """Of the file that a dataset's function stands in: other code, other data."""
    module = inspect.getmodule(function)
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest() if module else ""
    except OSError:
        return ""


def _write(run: Run, source: Source, data: Data, seed: int) -> dict[str, Any]:
    files = {}
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=run.data) as folder:
        for name, (features, labels) in split(
            source, data.validation_fraction, data.test_fraction, seed
        ).items():
            file = Path(folder) / f"{name}.safetensors"
            save_file({"features": features, "labels": labels}, file)
            size = file.stat().st_size
            files[name] = {"sha256": store.put(run.catalog, file), "bytes": size, "samples": len(labels)}
    return {
        "files": files,
        "input_shape": list(source.features.shape[1:]),
        "classes": [str(name) for name in source.classes],
    }


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


def split(
    source: Source, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Train, validation and test: stratified (each class in proportion) and drawn by the seed."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 3])))
    taken = np.arange(len(source.labels))
    own_test = source.test_features is not None and source.test_labels is not None
    test = (source.test_features, source.test_labels)
    if not own_test:
        test_rows = _stratified(source.labels, taken, test_fraction, draw)
        test = (source.features[test_rows], source.labels[test_rows])
        taken = np.setdiff1d(taken, test_rows)
    # The fraction is one of all samples; what is left of them to take it from may be less.
    rest = 1.0 if own_test and test_fraction == 0 else 1.0 - test_fraction
    validation_rows = _stratified(source.labels, taken, validation_fraction / rest, draw)
    train_rows = np.setdiff1d(taken, validation_rows)
    rows = {"train": train_rows, "validation": validation_rows}
    parts = {name: (source.features[chosen], source.labels[chosen]) for name, chosen in rows.items()}
    parts["test"] = test  # type: ignore[assignment]
    return {name: (np.ascontiguousarray(x), np.ascontiguousarray(y)) for name, (x, y) in parts.items()}


def _stratified(
    labels: NDArray[np.int64], rows: NDArray[np.intp], fraction: float, draw: np.random.Generator
) -> NDArray[np.intp]:
    """About ``fraction`` of the rows, of every class its share, in ascending order.

    Sorting shuffled rows by class and taking every 1/fraction-th one gives each class its share to within
    one sample, and the whole its exact rounded count, however many classes there are.
    """
    count = round(len(rows) * fraction)
    if count == 0:
        return rows[:0]
    shuffled = draw.permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    places = (np.arange(count) * len(rows) + draw.integers(len(rows))) // count % len(rows)
    return np.sort(by_class[places])


def _check(source: object, name: str) -> None:
    """Refuse what no training could use, in the words of the dataset's author."""
    if not isinstance(source, Source):
        raise UsageError(
            f"data.name: {name} returned {type(source).__name__}, not a lockstep.datasets.Source (features, labels, "
            "classes)"
        )
    problems = _problems("", source.features, source.labels, source)
    own_test = (source.test_features, source.test_labels)
    if (own_test[0] is None) != (own_test[1] is None):
        problems.append("one of test_features and test_labels without the other")
    elif own_test[0] is not None:
        problems += _problems("test ", *own_test, source)
    if not problems and len(source.labels) < 2:
        problems.append(f"{len(source.labels)} samples")
    if problems:
        raise UsageError(
            f"data.name: {name} gave {'; '.join(problems)}. Needed: two samples or more, as many labels as samples, "
            "finite float32 features of shape (samples, ...), int64 labels from 0 to classes - 1"
        )


def _problems(which: str, features: object, labels: object, source: Source) -> list[str]:
    """What is wrong with one table of samples."""
    if not isinstance(features, np.ndarray) or not isinstance(labels, np.ndarray):
        return [f"{which}features and labels as {type(features).__name__} and {type(labels).__name__}"]
    found = []
    if features.ndim < 2 or labels.ndim != 1:
        found.append(f"{which}features of shape {features.shape} and labels of shape {labels.shape}")
    elif features.shape[1:] != source.features.shape[1:]:
        found.append(f"{which}samples of shape {features.shape[1:]} beside {source.features.shape[1:]}")
    if len(features) != len(labels):
        found.append(f"{len(features)} {which}samples but {len(labels)} {which}labels")
    if features.dtype != np.float32 or labels.dtype != np.int64:
        found.append(f"{which}features of {features.dtype} and labels of {labels.dtype}")
    elif labels.size and not 0 <= labels.min() <= labels.max() < len(source.classes):
        found.append(f"{which}labels from {labels.min()} to {labels.max()} for {len(source.classes)} classes")
    if features.dtype == np.float32 and not np.isfinite(features).all():
        found.append(f"NaN or infinite {which}features")
    return found
