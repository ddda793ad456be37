"""What could decide a run's numbers and is not in its record: without it nobody can say that a run does not repeat."""

from collections.abc import Iterator
from typing import Any

from lockstep.catalog import imports
from lockstep.catalog.compare import inputs
from lockstep.catalog.compare.code import Comparison, compare, state_of
from lockstep.catalog.compare.inputs import Apart, differences
from lockstep.catalog.provenance import file_of
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run
from lockstep.files import read_object

NEVER_COVERED = (
    "no record covers: files inside installed packages that were edited in place, files that the code reads by itself, "
    "variables of the environment that only it knows, drivers and compilers"
)
MOST_ATTEMPTS = 1000


def gaps(a: Run, b: Run, code: Comparison) -> list[str]:
    """A phrase for everything that the two records lack, to stand after "not recorded: "."""
    found: list[str] = []
    for name, run in (("A", a), ("B", b)):
        found += [f"{each} of {name}" for each in _of(run)]
    return found if imports_known(a) and imports_known(b) else [*found, *code.gaps]


def imports_known(run: Run) -> bool:
    """Whether a run says of all its processes what they imported, to their end."""
    return imports.read(run).get("complete") is True


def imported_files(a: Run, b: Run) -> frozenset[str] | None:
    """The files of the user's own modules that two runs imported; None where that is not known of both to the end."""
    if not (imports_known(a) and imports_known(b)):
        return None
    modules = [each for run in (a, b) for each in mapping(imports.read(run).get("modules")).values()]
    return frozenset(str(mapping(each).get("file")) for each in modules)


def _of(run: Run) -> Iterator[str]:
    provenance = read_object(run.provenance)
    if not inputs.parameters_of(run):
        yield "the parameters"
    if not inputs.data_of(run).get("identity"):
        yield "the data"
    if not mapping(provenance.get("machine")) or not mapping(provenance.get("packages")):
        yield "machine and packages"
    if not mapping(provenance.get("distributions")):
        yield "the versions of all packages"
    record = imports.read(run)
    if not mapping(record):
        yield "the modules that were imported"
    elif record.get("other"):
        yield f"one state of {', '.join(map(str, record['other']))}, which changed while it was imported,"
    owned: set[str] = set()
    for about in mapping(provenance.get("distributions")).values():
        modules = mapping(about).get("modules")
        owned |= set(map(str, modules)) if isinstance(modules, list) else set()
    loaded = record.get("packages")
    stray = sorted(set(map(str, loaded)) - owned) if isinstance(loaded, list) and owned else []
    if stray:
        yield f"the code of {', '.join(stray[:5])}, beside the installed packages but of none of them,"


def attempts(name: str, run: Run, folders: list[Any]) -> list[tuple[str, list[Apart]]]:
    """For each attempt that went on under other circumstances than the first: words, and what differed."""
    found: list[tuple[str, list[Apart]]] = []
    first = inputs.environment_of(run)
    for number in range(2, MOST_ATTEMPTS):
        if not file_of(run, number).is_file():
            break
        apart = differences(first, inputs.environment_of(run, number))
        apart = [each for each in apart if not each.key.startswith("uv_lock.")]
        own = differences(inputs.own_modules_of(run), inputs.own_modules_of(run, number))
        apart += [
            Apart(f"imports.{each.key}", each.a, each.b)
            for each in own
            if inputs.ABSENT not in (each.a, each.b)
        ]
        code = compare(state_of(run), state_of(run, number), folders)
        if code.same is False:
            apart += [Apart(f"code.{file}", "as in attempt 1", "changed") for file in code.files]
        if apart:
            found.append((f"attempt {number} of {name}", apart))
    return found
