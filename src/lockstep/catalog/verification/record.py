"""A run's files, each read once and taken for whatever it is: all of it is somebody's text until it is compared."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lockstep.catalog import events
from lockstep.catalog.finding import Finding
from lockstep.catalog.report.values import mapping
from lockstep.catalog.run import Run
from lockstep.errors import ParametersError
from lockstep.files import open_plain, parse_json, read_object, read_plain

LARGEST_METRICS_BYTES = 1 << 30
LONGEST_LINE_BYTES = 16 << 20
_METRICS = re.compile(r"rank-(\d{1,6})(?:\.attempt-(\d{1,6}))?\.jsonl")


class Record:
    """One run, for the checks that compare its files with each other."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """All whole events."""
        return events.read(self.run)

    @cached_property
    def created(self) -> dict[str, Any]:
        """The event that began the run."""
        return self.first("created")

    @cached_property
    def run_id(self) -> str:
        """As the history says it; the folder's name where it does not."""
        found = self.created.get("run_id")
        return found if isinstance(found, str) else self.run.run_id

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Of the first attempt."""
        return read_object(self.run.provenance)

    @cached_property
    def results(self) -> dict[str, Any]:
        """The aggregated metrics."""
        return read_object(self.run.results)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What setup_distributed decided."""
        return read_object(self.run.plan)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The data's description."""
        return read_object(self.run.data / "data.json", depth=2)

    @cached_property
    def run_log(self) -> dict[str, Any]:
        """Runnable's log."""
        return read_object(self.run.run_log)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """parameters.yaml as plain values; none of the code that it names is looked at."""
        from lockstep import strict_yaml  # yaml takes a while, and many commands need none

        try:
            return strict_yaml.parse(read_plain(self.run.parameters, 1 << 20), "parameters.yaml").value
        except (OSError, ParametersError):
            return {}

    def first(self, event: str) -> dict[str, Any]:
        """The first event of a name; empty where there is none."""
        return next((each for each in self.history if each["event"] == event), {})

    def last(self, event: str) -> dict[str, Any]:
        """The last event of a name; empty where there is none."""
        return next((each for each in reversed(self.history) if each["event"] == event), {})

    def metrics_files(self) -> dict[int, list[Path]]:
        """The metrics of each rank, oldest attempt first."""
        files: dict[int, dict[int, Path]] = {}
        for path in entries(self.run.metrics):
            if found := _METRICS.fullmatch(path.name):
                files.setdefault(int(found[1]), {})[int(found[2] or 1)] = path
        return {rank: [by_attempt[n] for n in sorted(by_attempt)] for rank, by_attempt in files.items()}


def entries(folder: Path) -> list[Path]:
    """What stands in a folder that is no link, by name; nothing where it cannot be looked into."""
    try:
        return [] if folder.is_symlink() else sorted(folder.iterdir())
    except OSError:
        return []


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Each line of a metrics file with its number; None for one that is no object. Raises OSError."""
    with open_plain(path, depth=2) as file:
        number = 0
        while line := file.readline(LONGEST_LINE_BYTES):
            number += 1
            try:
                value = parse_json(line)
            except ValueError:
                value = None
            yield number, value if isinstance(value, dict) else None


def differs(file: str, what: str, found: object, elsewhere: str, expected: object) -> Finding:
    """The finding that two files contradict each other."""
    return Finding(file, f"says {what} {brief(found)}, and {elsewhere} says {brief(expected)}")


def brief(value: object) -> str:
    """A recorded value, short enough for a sentence."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def strategy_of(value: object) -> dict[str, Any]:
    """A strategy with its options, whether it was written as a name or as a mapping."""
    return {"name": value} if isinstance(value, str) else mapping(value)
