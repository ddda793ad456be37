"""What changed around a run since it was made: parameters, data, code, packages. Asked before it is resumed.

`lockstep resume` refuses each that was not named with --accept; whatever is accepted is recorded. Parameters that
are typed as key=value are named by that. `--resume` of a pipeline does not ask: it tells of code and packages, and
goes on with the parameters and the data that the run's own folder holds.
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lockstep import parameters
from lockstep.catalog import provenance
from lockstep.catalog.compare import code, inputs
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run
from lockstep.catalog.source_files import is_source
from lockstep.errors import ParametersError, UsageError
from lockstep.files import read_object
from lockstep.orchestration import prepare
from lockstep.parameters import Parameters

KINDS = ("parameters", "data", "code", "packages")
KEPT = ("parameters", "data")  # a run's folder holds its own
DEFAULT_FILE = "parameters.yaml"
_PACKAGES = ("python", "torch", "numpy", "safetensors")


@dataclass(frozen=True)
class Change:
    """One kind of change: ``words`` say what changed from what, ``before`` and ``after`` hold it for programs."""

    kind: str
    words: str
    before: Any = None
    after: Any = None

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)


def refuse(
    found: Sequence[Change], accepted: Collection[str], run: Run, command: Callable[[Sequence[str]], str]
) -> None:
    """Raise UsageError for the changes that are not accepted; ``command`` is what was typed, with more options."""
    refused = [change for change in found if change.kind not in accepted]
    if not refused:
        return
    lines = [f"{change.kind} changed since run {run.shown}: {change.words}" for change in refused]
    accepting = [word for change in refused for word in ("--accept", change.kind)]
    lines.append(f"say which change is meant: {command(accepting)}")
    if any(change.kind in KEPT for change in refused):
        keeping = [
            word
            for change in refused
            for word in ("--keep" if change.kind in KEPT else "--accept", change.kind)
        ]
        lines.append(f"or go on with what the run's folder holds: {command(keeping)}")
    raise UsageError("\n".join(lines))


def last_provenance(run: Run) -> tuple[int, dict[str, Any]]:
    """The record of the last attempt that left one, and its number."""
    found = 1, read_object(run.provenance)
    for number in range(2, 10_000):
        record = read_object(run.path / f"provenance.attempt-{number}.json")
        if not record:
            break
        found = number, record
    return found


def of_code(run: Run, folder: Path) -> Change | None:
    """Whether the programs in the repository are others than those of the last attempt."""
    number, _ = last_provenance(run)
    before, now = code.state_of(run, number), code.current_state(folder, run.catalog)
    found = code.compare(before, now, [folder])
    if found.same or not found.computes or (before.commit is None and now.commit is None):
        return None
    names = [name for name in found.files if is_source(name)]
    some = f": {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else ""
    gaps = f" ({'; '.join(found.gaps)})" if found.gaps else ""
    return Change("code", f"{found.words}{some}{gaps}", before.short, now.short)


def of_packages(run: Run) -> Change | None:
    """Whether those that computing depends on are of other versions."""
    before = mapping(last_provenance(run)[1].get("packages"))
    now = provenance.surroundings()["packages"]
    names = [name for name in _PACKAGES if before.get(name) and before.get(name) != now.get(name)]
    if not names:
        return None
    words = ", ".join(f"{name} {before[name]} -> {now.get(name) or 'absent'}" for name in names)
    return Change("packages", words, *({name: each.get(name) for name in names} for each in (before, now)))


def of_data(run: Run, wanted: Parameters, folder: Path) -> Change | None:
    """Whether the run's own data section gives other splits today; they are made once more and compared."""
    recorded = mapping(read_object(run.data / "data.json", 2).get("files"))
    if not recorded:
        return None
    with tempfile.TemporaryDirectory(prefix=".tmp-resume-", dir=run.catalog) as scratch:
        again = Run(Path(scratch).resolve() / "catalog" / "again")
        again.data.mkdir(parents=True)
        made = prepare.prepare(again, wanted.data, wanted.seed, folder)["files"]
    before, now = ({name: at(files, name, "sha256") for name in made} for files in (recorded, made))
    names = [name for name in made if before[name] != now[name]]
    if not names:
        return None
    words = ", ".join(f"{name} {str(before[name])[:12]} -> {str(now[name])[:12]}" for name in names)
    return Change("data", f"{wanted.data.name} gives other samples than the run's own: {words}", before, now)


def of_parameters(run: Run, folder: Path, typed: Sequence[str]) -> Change | None:
    """Whether the command that made the run would make another today, because its file has changed.

    Keys that are typed now are settled by that. Where the command cannot be repeated in thought (another folder,
    a run that was resumed itself, a program with parameters of its own) the run's folder is all there is.
    """
    again = file_and_overrides(run, folder)
    if again is None:
        return None
    try:
        today = parameters.read(again[0], [*again[1], *typed])
        meant = parameters.read(run.parameters, typed)
    except ParametersError as error:
        return Change("parameters", f"{again[0].name} cannot be used any more: {error}")
    different = parameters.difference(meant, today)
    if not different:
        return None
    apart = inputs.differences(*(inputs.flattened(each.to_value()) for each in (meant, today)))
    return Change(
        "parameters",
        f"{again[0].name}: {', '.join(different)}",
        {each.key: each.a for each in apart},
        {each.key: each.b for each in apart},
    )


def file_and_overrides(run: Run, folder: Path) -> tuple[Path, list[str]] | None:
    """The parameter file and the overrides that a run was made with, where its command can be understood."""
    record = read_object(run.provenance)
    argv, cwd = record.get("argv"), record.get("cwd")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv) or cwd != str(folder):
        return None
    if (
        not argv
        or Path(argv[0]).name not in ("lockstep", "pipeline.py", "__main__.py")
        or mapping(record.get("parent"))
    ):
        return None
    words = argv[1:]
    file = folder / DEFAULT_FILE
    for index, word in enumerate(words):
        if word == "--parameters" and index + 1 < len(words):
            file = folder / words[index + 1]
        elif word.startswith("--parameters="):
            file = folder / word.partition("=")[2]
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    return (file, overrides) if file.is_file() else None


def recorded(attempt: int, found: Sequence[Change]) -> dict[str, Any]:
    """The fields of the event that tells of accepted changes."""
    return {"attempt": attempt, "changes": [change.as_dict() for change in found]}
