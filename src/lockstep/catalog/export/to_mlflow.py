"""A run in MLflow: parameters, metrics with their steps, artifacts, status, and lineage as tags.

Exporting again changes nothing where nothing changed, and brings the server up to date where the run has gone on:
the run is found by a tag that every copy of the record shares, and only what is not there yet is sent.
"""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockstep.catalog import credentials
from lockstep.catalog.export.material import ALONE, MODEL, File, Material, files, gather
from lockstep.catalog.export.mlflow_words import key_of, sealed, tags_of, value_of
from lockstep.catalog.export.points import Point, points
from lockstep.catalog.run import Run
from lockstep.catalog.run_parameters import flat
from lockstep.errors import LockstepError, MissingPackage, UsageError
from lockstep.files import open_inside, printable, read_plain

STATUSES = {
    "succeeded": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "killed": "KILLED",
    "running": "RUNNING",
}
IDENTITY = "lockstep.identity"
LARGEST_ARTIFACT = 64 << 20  # bytes of a single file of the record itself; checkpoints may be larger
# What one request may hold: 1,000 metrics, 100 parameters, 100 tags, a megabyte.
MOST_METRICS, MOST_PARAMETERS = 1000, 100


def export(
    run: Run, tracking_uri: str | None = None, experiment: str = "lockstep", with_checkpoints: bool = False
) -> dict[str, Any]:
    """Send a run; returns what was done: mlflow_run, experiment, status, and how much of each was new.

    Raises MissingPackage, UsageError (no server named; a run that cannot be asked), CorruptRecord (checkpoints
    that are not what their manifests say), or LockstepError where the server cannot be reached or refuses.
    """
    material = gather(run)
    if material.state.word not in STATUSES:
        raise UsageError(f"run {run.shown}: {material.state.message}: it is exported after its end")
    uploads = files(material) if with_checkpoints else []
    client, errors = _client(tracking_uri)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the client prints links to what it makes
            return _send(client, material, experiment, uploads)
    except errors as error:
        raise LockstepError(f"MLflow at {_server(tracking_uri)}: {_words(error)}") from None


def _words(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0])[:500] or type(error).__name__


def _server(tracking_uri: str | None) -> str:
    return printable(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))


def _client(tracking_uri: str | None) -> tuple[Any, tuple[type[Exception], ...]]:
    """A client, and the errors that a server or the way to it can cause."""
    # Set before the import: nothing is told to anyone but the server that was named, and a server that is
    # not there is given up on within seconds rather than minutes.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if not _server(tracking_uri):
        raise UsageError(
            "no MLflow server is named: --tracking-uri http://127.0.0.1:5000, or MLFLOW_TRACKING_URI"
        )
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise MissingPackage("mlflow-skinny", "mlflow", "--format mlflow", "lockstep export ...") from None
    import requests  # the client's own

    try:
        client = MlflowClient(_server(tracking_uri))
    except (
        MlflowException,
        ImportError,
        ValueError,
        OSError,
    ) as error:  # of the kind of place, none was asked yet
        raise UsageError(
            f"--tracking-uri: found {_server(tracking_uri)}, which this MLflow client does not take ({_words(error)}); "
            "allowed: the address of a server, such as http://127.0.0.1:5000. A database such as "
            "sqlite:///mlflow.db needs the whole package beside the client: uv pip install mlflow"
        ) from None
    return client, (MlflowException, requests.RequestException)


def _send(client: Any, material: Material, experiment: str, uploads: Sequence[File]) -> dict[str, Any]:
    mlflow_run, made = _find_or_make(client, material, experiment)
    run_id = mlflow_run.info.run_id
    parameters = _send_parameters(client, run_id, material, mlflow_run.data.params)
    metrics = _send_metrics(client, run_id, material, mlflow_run.data.metrics)
    parent = _parent_there(client, material, mlflow_run.info.experiment_id)
    for name, value in tags_of(material, parent).items():
        if mlflow_run.data.tags.get(name) != value:
            client.set_tag(run_id, name, value)
    artifacts = _send_artifacts(client, run_id, material, uploads, mlflow_run.data.tags)
    status = STATUSES[material.state.word]
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status=status, end_time=_milliseconds(material.ended))
    return {
        "mlflow_run": run_id,
        "experiment": experiment,
        "was": "made" if made else "there already",
        "status": status,
        "parameters": f"{parameters} new",
        "metrics": f"{metrics} new points",
        "artifacts": f"{artifacts} sent",
        **(
            {"kept_back": f"{', '.join(back)}: looks like credentials"}
            if (back := kept_back_of(material))
            else {}
        ),
    }


def _find_or_make(client: Any, material: Material, experiment: str) -> tuple[Any, bool]:
    """The MLflow run of this record, in any state; made where the server has none."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    runs = client.search_runs([experiment_id], f"tags.`{IDENTITY}` = '{material.uuid}'", max_results=1)
    if runs:
        return client.get_run(runs[0].info.run_id), False
    made = client.create_run(
        experiment_id,
        start_time=_milliseconds(material.began),
        run_name=material.run.run_id,
        tags={IDENTITY: material.uuid},
    )
    return made, True


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def _send_parameters(client: Any, run_id: str, material: Material, there: dict[str, str]) -> int:
    """Each parameter once: MLflow refuses to change one."""
    from mlflow.entities import Param

    wanted = {key_of(name): value_of(value) for name, value in flat(material.parameters).items()}
    new = [Param(name, value) for name, value in wanted.items() if name and name not in there]
    for part in _batches(new, MOST_PARAMETERS):
        client.log_batch(run_id, params=part)
    return len(new)


def _send_metrics(client: Any, run_id: str, material: Material, there: dict[str, float]) -> int:
    """The points that the server does not have yet; it would keep a point twice."""
    from mlflow.entities import Metric

    known: set[tuple[str, int, int, float]] = set()
    for name in there:
        known |= {
            (name, each.step, each.timestamp, each.value) for each in client.get_metric_history(run_id, name)
        }
    new = (point for point in points(material) if _identity(point) not in known)
    sent = 0
    for part in _batches(new, MOST_METRICS):
        client.log_batch(
            run_id, [Metric(each.name, each.value, each.milliseconds, each.step) for each in part]
        )
        sent += len(part)
    return sent


def _identity(point: Point) -> tuple[str, int, int, float]:
    return point.name, point.step, point.milliseconds, point.value


def _parent_there(client: Any, material: Material, experiment_id: str) -> str | None:
    name = material.parent.get("run_id")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9._-]{1,64}", name):
        return None
    found = client.search_runs([experiment_id], f"tags.`lockstep.run_id` = '{name}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _send_artifacts(
    client: Any, run_id: str, material: Material, uploads: Sequence[File], tags: dict[str, str]
) -> int:
    """The record's own files, and what was asked for; again only after they changed."""
    folder = material.run.path
    kept_back = {MODEL, *kept_back_of(material)}
    alone = [name for name in [*ALONE, "events.jsonl"] if name not in kept_back]
    names = [name for name in alone if 0 <= _size(folder / name) <= LARGEST_ARTIFACT]
    names += [file.name for file in uploads if file.name.startswith("checkpoints/") or file.name == MODEL]
    state = json.dumps([[name, _size(folder / name)] for name in names] + [sealed(material)])
    if tags.get("lockstep.artifacts") == _digest(state):
        return 0
    with tempfile.TemporaryDirectory(prefix="lockstep-export-") as scratch:
        for name in names:  # one at a time: a copy of each is made, so that no link is ever followed
            copy = Path(scratch) / Path(name).name
            with open_inside(folder, name) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            inside = Path(name).parent.as_posix()
            client.log_artifact(run_id, str(copy), None if inside == "." else inside)
            copy.unlink()
    client.set_tag(run_id, "lockstep.artifacts", _digest(state))
    return len(names)


def kept_back_of(material: Material) -> list[str]:
    """The patch, where an earlier version recorded something in it that looks like credentials: it stays here."""
    try:
        content = read_plain(material.run.patch, LARGEST_ARTIFACT)
    except OSError:
        return []
    return [material.run.patch.name] if credentials.in_patch(content) else []


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def _size(path: Path) -> int:
    """The size of a plain file in bytes; -1 for anything else."""
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


def _batches(items: Any, most: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == most:
            yield part
            part = []
    if part:
        yield part
