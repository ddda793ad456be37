"""The recorded parameters of runs, flat: training.learning_rate, model.hidden_sizes.

What is chosen by name stands under its own name too: distributed.strategy is ddp where
distributed.strategy.name is.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.catalog import index
from lockstep.catalog.index import Index
from lockstep.catalog.run import Run
from lockstep.errors import ParametersError
from lockstep.files import read_plain

LARGEST_BYTES = 1_000_000


def of_runs(catalog: Path, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The flat parameters of each run; empty for one whose file is missing or damaged."""
    catalog = catalog.resolve()
    cache = Index(catalog, "parameters", time.time(), lambda value: type(value) is dict)
    files = {run_id: (str(Run(catalog / run_id).parameters),) for run_id in run_ids}
    cache.read_ahead(files, lambda run_id: flat(nested(Run(catalog / run_id))))
    found = {}
    for run_id in run_ids:
        run = Run(catalog / run_id)
        found[run_id] = cache.get(run_id, files[run_id], lambda run=run: flat(nested(run)))  # type: ignore[misc]
    cache.close()
    return found


def note(run: Run) -> None:
    """Leave the parameters of a run that has just ended where the next filter looks first."""
    index.note(run.catalog, "parameters", run.run_id, (str(run.parameters),), flat(nested(run)))


def nested(run: Run) -> dict[str, Any]:
    """The parameters as they stand in the file; empty where it is missing or damaged."""
    from lockstep import strict_yaml

    try:
        content = read_plain(run.parameters, LARGEST_BYTES)
        return strict_yaml.parse(content, run.parameters.name).value
    except (OSError, ParametersError):
        return {}


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names. Lists are values."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if not isinstance(inner, dict):
            found[f"{prefix}{key}"] = inner
            continue
        if isinstance(inner.get("name"), str):
            found[f"{prefix}{key}"] = inner["name"]
        found.update(flat(inner, f"{prefix}{key}."))
    return found
