"""Why two runs part, deduced from what differs between them and from where in a step it first shows.

Each thing that differs can show first in some quantities only: another learning rate never changes the loss of
the first step, nor a thread count the samples. What differs and fits is the cause; where nothing differs, the
same configuration does not repeat itself. Every conclusion comes with what it was drawn from.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lockstep.catalog.compare.code import Comparison
from lockstep.catalog.compare.coverage import NEVER_COVERED
from lockstep.catalog.compare.inputs import ABSENT, Apart
from lockstep.catalog.compare.quantities import NAMES, SAMPLES, WEIGHTS, Difference, Walk
from lockstep.catalog.source_files import is_source, may_be_read

INITIAL = "weights before the first step"
LOSS, NORM, GRADIENT, RATE = (
    NAMES[key] for key in ("loss", "grad_norm", "gradient_digests", "learning_rate")
)
MATHS = {LOSS, NORM, GRADIENT, WEIGHTS}
EVERYTHING = MATHS | {INITIAL, SAMPLES, RATE}
SHOWN = 8
SAME = (
    "what decides the numbers is recorded as the same: parameters, code, imported modules, packages, processor, "
    "threads, data"
)

# In the order in which they are believed where several fit: what is more particular comes first.
CLASSES = (
    "starting point",
    "seed",
    "data",
    "model parameters",
    "optimizer parameters",
    "training algorithm",
    "precision",
    "code",
    "arithmetic",
    "packages",
    "unknown",
)
_HOW = ("micro_batch_size", "compile", "channels_last", "tf32", "activation_checkpointing")
INERT = ("digest_every", "launcher", "start_method", "timeout_seconds")  # keys that change no number
_PARAMETERS = (
    ("seed", r"seed", {INITIAL, SAMPLES, LOSS}),
    ("data", r"data(\..*)?|training\.global_batch_size", {INITIAL, SAMPLES, LOSS, RATE}),
    ("model parameters", r"model(\..*)?", {INITIAL, LOSS, NORM, GRADIENT}),
    ("precision", r"training\.precision", EVERYTHING - {RATE}),
    ("optimizer parameters", r"training\.(learning_rate|schedule(\..*)?|epochs)", {RATE}),
    ("optimizer parameters", r"training\.max_grad_norm", {GRADIENT}),
    ("optimizer parameters", r"training\.optimizer(\..*)?", {WEIGHTS}),
    ("optimizer parameters", r"training\.ema_decay", {WEIGHTS}),
    ("arithmetic", r"distributed\.(world_size|strategy(\..*)?|threads_per_rank|backend|device)", MATHS),
    ("arithmetic", rf"training\.({'|'.join(_HOW)})", MATHS),
    # What none of these knows may do anything: it is never passed over.
    ("unknown", rf"(training|distributed)\.(?!({'|'.join(INERT)})$).*", EVERYTHING),
)
_ENVIRONMENT = (
    ("code", r"packages\.lockstep|distributions\.lockstep\..*|imports\..*", EVERYTHING),
    (
        "arithmetic",
        r"(packages|distributions)\.(torch|numpy|python|safetensors)(\..*)?",
        MATHS | {INITIAL, SAMPLES},
    ),
    ("packages", r"distributions\..*", EVERYTHING),
    (
        "arithmetic",
        r"machine\.(processor|processor_features|architecture|gpus|gpu_driver)",
        MATHS | {INITIAL},
    ),
    ("arithmetic", r"environment\.(OMP|MKL|OPENBLAS|NUMEXPR|KMP|ATEN|DNNL|ONEDNN|CU)\w*", MATHS | {INITIAL}),
    ("arithmetic", r"plan\.(threads_per_rank|device)", MATHS | {INITIAL}),
    ("unknown", r"environment\.(?!PYTHONUNBUFFERED$).*|machine\.os", EVERYTHING),
)
_CODE = (  # files that an attempt found changed
    ("code", r"code\..*\.(py|pyi|pyx|c|cc|cpp|cu|cuh|h|hpp|rs|so|pth)", EVERYTHING),
    ("unknown", r"code\..*", EVERYTHING),
)
# Where the versions of all installed packages are not recorded, these stand for them.
_LOCKED = (
    ("arithmetic", r"uv_lock\.(?!sha256).*", MATHS | {INITIAL, SAMPLES}),
    ("packages", r"packages\.(?!uv$).*", EVERYTHING),
)


@dataclass(frozen=True)
class Candidate:
    """Something that differs, and the quantities that it can be seen in first."""

    kind: str
    words: str
    shows_in: frozenset[str]


@dataclass
class Cause:
    """``kind`` is one of CLASSES, non-determinism, or unknown. ``others`` might do the same and differ as well."""

    kind: str
    evidence: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Inputs:
    """Everything that is known to differ around two runs."""

    parameters: list[Apart]
    environment: list[Apart]
    data: list[Apart]
    start: list[Apart]
    code: Comparison
    inexact: bool  # one of the two is not meant to compute what a single process does
    repeats_differ: list[str]  # sentences on steps that one run did twice, with other bits
    gaps: list[str] = field(default_factory=list)  # what could decide and is not recorded
    attempts: list[tuple[str, list[Apart]]] = field(
        default_factory=list
    )  # later ones, and what was other then
    imported: frozenset[str] | None = (
        None  # the files of the user's own that the runs imported; None: not known
    )
    packages_known: bool = False  # of both runs, the versions of all that is installed


def find(walk: Walk, first: Difference, inputs: Inputs) -> Cause:
    """The cause of the first difference."""
    possible = _possible(walk, first)
    candidates = list(_candidates(inputs))
    fitting = [each for each in candidates if each.shows_in & possible]
    seen = _what_is_seen(walk, first)
    if inputs.repeats_differ:
        seen += inputs.repeats_differ
    if not candidates:
        elsewhere = [_words(each) for each in inputs.environment if each.key.startswith("machine.")]
        if inputs.gaps:
            lacking = [f"not recorded: {each}" for each in inputs.gaps]
            nothing = "nothing that is recorded differs, but not everything that could decide is recorded"
            return Cause("unknown", [*seen, nothing, *_shortened(lacking)], _shortened(elsewhere))
        return Cause("non-determinism", [*seen, SAME, NEVER_COVERED], _shortened(elsewhere))
    if not fitting:
        words = [f"{each.words} (it cannot show there first)" for each in candidates]
        return Cause("unknown", [*seen, "nothing that differs explains it"], words[:SHOWN])
    kind = min((each.kind for each in fitting), key=CLASSES.index)
    chosen = [each.words for each in fitting if each.kind == kind]
    others = [f"{each.kind}: {each.words}" for each in fitting if each.kind != kind]
    return Cause(kind, [*seen, *_shortened(chosen)], _shortened(others))


def _possible(walk: Walk, first: Difference) -> set[str]:
    """Where it may have begun: in what was seen, or in what was not looked at between there and the last agreement."""
    initial = first.quantity == WEIGHTS and first.step < min(walk.steps, default=1)
    if initial:
        return {INITIAL}
    quantity = GRADIENT if first.quantity == NAMES["own_gradient_digests"] else first.quantity
    if quantity in EVERYTHING - {SAMPLES, RATE} and walk.last_same_weights != first.step - 1:
        never_looked = {INITIAL} if walk.last_same_weights is None else set()
        return {quantity, WEIGHTS, GRADIENT, LOSS, NORM, SAMPLES} | never_looked
    if quantity == WEIGHTS:
        return {WEIGHTS, GRADIENT, RATE} if RATE not in walk.compared else {WEIGHTS, GRADIENT}
    if quantity == LOSS:
        return {LOSS, SAMPLES}
    if quantity in (NORM, GRADIENT):
        return {NORM, GRADIENT}
    return {quantity} if quantity in EVERYTHING else EVERYTHING


def _what_is_seen(walk: Walk, first: Difference) -> list[str]:
    if first.step < min(walk.steps, default=1):
        return ["the weights differ before the first step"]
    if walk.last_same_weights is None:
        return ["no fingerprints of the weights from before it can be compared"]
    return [f"after step {walk.last_same_weights} all weights were the same"]


def _candidates(inputs: Inputs) -> Iterator[Candidate]:
    start = [each for each in inputs.start]
    if start:
        yield Candidate("starting point", "they start from other checkpoints", frozenset(EVERYTHING))
    yield from _matching(inputs.parameters, _PARAMETERS, inputs.inexact)
    splits = [each for each in inputs.data if re.fullmatch(r"files\.\w+\.sha256", each.key)]
    splits = [each for each in splits if ABSENT not in (each.a, each.b)]  # that is a gap, and no difference
    for each in splits:
        yield Candidate("data", f"data: {_words(each)}", frozenset({SAMPLES, LOSS, "validation loss"}))
    rules = _ENVIRONMENT if inputs.packages_known else (*_ENVIRONMENT, *_LOCKED)
    yield from _matching(inputs.environment, rules, False)
    yield from _of_code(inputs.code, inputs.imported)
    for words, apart in inputs.attempts:
        for found in _matching(apart, (*rules, *_CODE), False):
            told = found.words.replace(" in A,", " in attempt 1,").removesuffix(" in B")
            yield Candidate(found.kind, f"{words} was under other circumstances: {told} then", found.shows_in)


def _of_code(code: Comparison, imported: frozenset[str] | None) -> Iterator[Candidate]:
    """What the repository's files that differ may have done. Where all imports are known, those tell of programs."""
    everything = frozenset(EVERYTHING)
    if code.same is False and code.computes and imported is None:
        files = [name for name in code.files if is_source(name)]
        yield Candidate("code", f"{code.words}: {_few(files)}", everything)
    elif code.same is None and imported is None:
        words = f"whether the code is the same is not known ({'; '.join(code.gaps) or code.words})"
        yield Candidate("unknown", words, everything)
    elif code.same is not True:
        rest = [name for name in code.files if not any(each.endswith(f"/{name}") for each in imported or ())]
        files = [name for name in rest if may_be_read(name)]
        if files:
            words = f"files of the repository differ that nothing imported, but that may have been read: {_few(files)}"
            yield Candidate("unknown", words, everything)


def _few(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _matching(found: list[Apart], rules: Any, inexact: bool) -> Iterator[Candidate]:
    for each in found:
        if each.key.startswith(("machine.", "packages.")) and ABSENT in (each.a, each.b):
            continue  # it was not recorded: coverage.py tells
        for kind, pattern, shows_in in rules:
            if re.fullmatch(pattern, each.key):
                other = inexact and each.key.startswith("distributed.")
                yield Candidate("training algorithm" if other else kind, _words(each), frozenset(shows_in))
                break


def _words(each: Apart) -> str:
    a, b = (value if value == ABSENT else _short(value) for value in (each.a, each.b))
    return f"{each.key}: {a} in A, {b} in B"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _shortened(words: list[str]) -> list[str]:
    return words if len(words) <= SHOWN else [*words[:SHOWN], f"and {len(words) - SHOWN} more"]
