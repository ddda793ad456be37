"""What a dataset returned, held against what training needs, and parted into train, validation and test."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.datasets import Pictures, Source, Tokens
from lockstep.errors import UsageError
from lockstep.parameters import Augmentation, Data

SPLITS = ("train", "validation", "test")
Rows = NDArray[np.intp]
Table = dict[str, NDArray[np.generic]]  # the tensors of one split's file
NEEDED = (
    "two samples or more, as many labels as samples, finite float32, uint8 or int64 features of shape (samples, ...), "
    "int64 labels from 0 to classes - 1"
)


def tables(
    source: Source | Tokens | Pictures, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Table]:
    """The tensors of each split's file."""
    if isinstance(source, Tokens):
        return {
            name: {"tokens": part}
            for name, part in regions(source, validation_fraction, test_fraction).items()
        }
    if isinstance(source, Pictures):
        chosen = split(_numbered(source), validation_fraction, test_fraction, seed)
        return {name: _listing(source, rows[:, 0]) for name, (rows, _) in chosen.items()}
    parts = split(source, validation_fraction, test_fraction, seed)
    return {name: {"features": x, "labels": y} for name, (x, y) in parts.items()}


def split(
    source: Source, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, tuple[NDArray[np.generic], NDArray[np.int64]]]:
    """Train, validation and test: stratified (each class in proportion) and drawn by the seed."""
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 3])))
    taken = np.arange(len(source.labels))
    given = {
        "validation": (source.validation_features, source.validation_labels),
        "test": (source.test_features, source.test_labels),
    }
    own = {name: (x, y) for name, (x, y) in given.items() if x is not None and y is not None}
    parts = dict(own)
    everything = len(taken) + sum(len(labels) for _, labels in own.values())
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if name not in own:
            # The fraction is one of all samples; what is left of them to take it from may be less.
            share = min(fraction * everything / max(len(taken), 1), 1.0)
            rows = _stratified(source.labels, taken, share, draw)
            parts[name] = (source.features[rows], source.labels[rows])
            taken = np.setdiff1d(taken, rows)
    if len(taken) < len(source.labels):
        parts["train"] = (source.features[taken], source.labels[taken])
    else:
        parts["train"] = (source.features, source.labels)
    return {name: tuple(map(np.ascontiguousarray, parts[name])) for name in SPLITS}  # type: ignore[misc]


def refuse_empty(counts: dict[str, int], data: Data) -> None:
    """Raise UsageError where nothing is left to learn from, or to test on."""
    empty = next((name for name in ("test", "train") if not counts[name]), None)
    if empty is None:
        return
    given = (
        f"data.validation_fraction {data.validation_fraction:g} and data.test_fraction {data.test_fraction:g}"
    )
    raise UsageError(
        f"{given} leave no sample of {sum(counts.values()):,} in the {empty} split; allowed: fractions that leave at "
        "least one in both the train and the test split, or more samples"
    )


def regions(
    source: Tokens, validation_fraction: float, test_fraction: float
) -> dict[str, NDArray[np.generic]]:
    """The text cut in three where it stands: what is tested on is never a neighbour of what was learnt twice."""
    count = len(source.tokens)
    ends = [
        round(count * (1 - validation_fraction - test_fraction)),
        round(count * (1 - test_fraction)),
        count,
    ]
    found = dict(zip(SPLITS, np.split(source.tokens, ends[:2]), strict=True))
    least = {name: source.context_length + 1 for name in ("train", "test")}
    for name, needed in least.items():
        if len(found[name]) < needed:
            raise UsageError(
                f"data.context_length: found {source.context_length}, but the text has {count:,} {source.token}s and "
                f"{len(found[name]):,} of them are the {name} split, allowed: less than that"
            )
    return {name: np.ascontiguousarray(part) for name, part in found.items()}


def _stratified(labels: NDArray[np.int64], rows: Rows, fraction: float, draw: np.random.Generator) -> Rows:
    """About ``fraction`` of the rows, of every class its share, in ascending order.

    Sorting shuffled rows by class and taking every 1/fraction-th one gives each class its share to within
    one sample, and the whole its exact rounded count, however many classes there are.
    """
    count = round(len(rows) * fraction)
    if count == 0:
        return rows[:0]
    shuffled = draw.permutation(rows)
    classes = labels[shuffled] if labels.ndim == 1 else np.zeros(len(shuffled), np.int64)
    by_class = shuffled[np.argsort(classes, kind="stable")]
    places = (np.arange(count) * len(rows) + draw.integers(len(rows))) // count % len(rows)
    return np.sort(by_class[places])


def _numbered(pictures: Pictures) -> Source:
    """Pictures as their row numbers, so that they are split like anything else."""
    numbers = np.arange(len(pictures.labels))

    def rows(name: str) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        chosen = pictures.parts.get(name)
        return (None, None) if chosen is None else (numbers[chosen, None], pictures.labels[chosen])

    train, labels = rows("train")
    if train is None or labels is None:
        train, labels = numbers[:, None], pictures.labels
    return Source(train, labels, pictures.classes, *rows("test"), *rows("validation"))


def _listing(pictures: Pictures, rows: NDArray[np.generic]) -> Table:
    """Paths one after the other with where each ends, digests and labels."""
    paths = [os.fsencode(pictures.paths[int(row)]) for row in rows]
    return {
        "paths": np.frombuffer(b"".join(paths), np.uint8),
        "ends": np.cumsum([len(path) for path in paths], dtype=np.int64),
        "digests": np.ascontiguousarray(pictures.digests[rows]),
        "labels": np.ascontiguousarray(pictures.labels[rows]),
    }


def check(source: object, name: str) -> None:
    """Refuse what no training could use, in the words of the dataset's author."""
    if isinstance(source, Tokens):
        problems = _token_problems(source)
    elif isinstance(source, Pictures):
        problems = [] if len(source.paths) > 1 else [f"{len(source.paths)} pictures"]
    elif isinstance(source, Source):
        problems = _source_problems(source)
    else:
        raise UsageError(
            f"data.name: {name} returned {type(source).__name__}, not a lockstep.datasets.Source (features, labels, "
            "classes)"
        )
    if problems:
        raise UsageError(f"data.name: {name} gave {'; '.join(problems)}. Needed: {NEEDED}")


def check_augmentation(about: dict[str, Any], asked: Augmentation) -> None:
    """Refuse what would do nothing to these samples, or could not be done."""
    shape, pictures = tuple(about["input_shape"]), about["kind"] == "pictures"
    if asked.on_pixels and (about["kind"] == "tokens" or len(shape) not in (2, 3)):
        raise UsageError(
            f"data.augmentation: found crop_padding {asked.crop_padding} and flip {str(asked.flip).lower()} for "
            f"samples of shape {shape}, which are no images; allowed: 0 and false"
        )
    if asked.crop_scale is not None and not pictures:
        raise UsageError(
            f"data.augmentation.crop_scale: found {asked.crop_scale}, allowed only with data.name: image_folder; "
            "crop_padding is for images that are all of one size"
        )
    if asked.crop_scale is not None and asked.crop_scale[0] > asked.crop_scale[1]:
        raise UsageError(
            f"data.augmentation.crop_scale: found {asked.crop_scale}, allowed: the smaller one first"
        )


def _token_problems(source: Tokens) -> list[str]:
    tokens = source.tokens
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype not in (np.uint8, np.int32):
        return ["tokens that are not a row of uint8 or int32"]
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(source.classes):
        return [f"tokens from {tokens.min()} to {tokens.max()} for {len(source.classes)} classes"]
    return []


def _source_problems(source: Source) -> list[str]:
    problems = _problems("", source.features, source.labels, source)
    for which, features, labels in (
        ("test", source.test_features, source.test_labels),
        ("validation", source.validation_features, source.validation_labels),
    ):
        if (features is None) != (labels is None):
            problems.append(f"one of {which}_features and {which}_labels without the other")
        elif features is not None:
            problems += _problems(f"{which} ", features, labels, source)
    if not problems and len(source.labels) < 2:
        problems.append(f"{len(source.labels)} samples")
    return problems or _scale_problems(source)


def _scale_problems(source: Source) -> list[str]:
    """What is wrong with mean and std."""
    channels = {1, source.features.shape[1]}
    return [
        f"{name} of {len(values)} values for {source.features.shape[1]} channels"
        for name, values in (("mean", source.mean), ("std", source.std))
        if values is not None and len(values) not in channels
    ]


def _problems(which: str, features: object, labels: object, source: Source) -> list[str]:
    """What is wrong with one table of samples."""
    if not isinstance(features, np.ndarray) or not isinstance(labels, np.ndarray):
        return [f"{which}features and labels as {type(features).__name__} and {type(labels).__name__}"]
    found = []
    if features.ndim < 2 or labels.ndim not in (1, 2):
        found.append(f"{which}features of shape {features.shape} and labels of shape {labels.shape}")
    elif features.shape[1:] != source.features.shape[1:] or labels.shape[1:] != source.labels.shape[1:]:
        found.append(f"{which}samples of shape {features.shape[1:]} beside {source.features.shape[1:]}")
    if len(features) != len(labels):
        found.append(f"{len(features)} {which}samples but {len(labels)} {which}labels")
    if features.dtype not in (np.float32, np.uint8, np.int64) or labels.dtype != np.int64:
        found.append(f"{which}features of {features.dtype} and labels of {labels.dtype}")
    elif labels.size and not 0 <= labels.min() <= labels.max() < len(source.classes):
        found.append(f"{which}labels from {labels.min()} to {labels.max()} for {len(source.classes)} classes")
    if features.dtype == np.float32 and not np.isfinite(features).all():
        found.append(f"NaN or infinite {which}features")
    return found
