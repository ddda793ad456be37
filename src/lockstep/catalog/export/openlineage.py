"""OpenLineage run events: START, and COMPLETE, FAIL or ABORT, with data as input and checkpoints as outputs.

Source: OpenLineage specification 2-0-2 (RunEvent) and its standard facets. The parent's checkpoint is an input
under the same name as it is its own run's output: that is how a lineage server joins the two.
"""

import re
from typing import Any

from lockstep import __version__
from lockstep.catalog.export.material import (
    File,
    Material,
    checkpoints,
    figures,
    files,
    timestamp,
)
from lockstep.catalog.report.values import at, mapping, whole
from lockstep.catalog.text import json_safe
from lockstep.errors import CorruptRecord

PRODUCER = f"urn:lockstep:{__version__}"
SPECIFICATION = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
NAMESPACE = "lockstep"
ENDINGS = {"succeeded": "COMPLETE", "failed": "FAIL", "killed": "FAIL", "interrupted": "ABORT"}
_STANDARD = {
    "errorMessage": "1-0-1/ErrorMessageRunFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
    "sourceCodeLocation": "1-1-0/SourceCodeLocationJobFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")


def run_events(material: Material) -> list[dict[str, Any]]:
    """The events, one for the start and, where the run has ended, one for its end. Raises CorruptRecord."""
    if material.began is None:
        raise CorruptRecord(f"run {material.run.shown}: its history does not say when it began")
    inputs = _inputs(material)
    found = [_event(material, "START", material.began, inputs, [])]
    ending = ENDINGS.get(material.state.word)
    if ending:
        outputs = _outputs(material, checkpoints(files(material)))
        found.append(_event(material, ending, material.ended or material.began, inputs, outputs))
    safe: list[dict[str, Any]] = json_safe(found, depth=24)
    return safe


def _event(
    material: Material, kind: str, time: float, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "eventType": kind,
        "eventTime": timestamp(time),
        "producer": PRODUCER,
        "schemaURL": SPECIFICATION,
        "run": {"runId": material.uuid, "facets": _run_facets(material, kind)},
        "job": {"namespace": NAMESPACE, "name": _job_name(material), "facets": _job_facets(material)},
        "inputs": inputs,
        "outputs": outputs,
    }


def _facet(name: str, /, **fields: object) -> dict[str, Any]:
    """A facet; one that is no standard facet is ours, and its name begins with lockstep_."""
    standard = _STANDARD.get(name)
    schema = f"urn:lockstep:facet:{name}:1"
    if standard:
        schema = f"https://openlineage.io/spec/facets/{standard}.json#/$defs/{standard.partition('/')[2]}"
    return {name: {"_producer": PRODUCER, "_schemaURL": schema, **fields}}


def _job_name(material: Material) -> str:
    summary = material.summary
    return f"train.{summary.get('dataset', 'data')}.{summary.get('model', 'model')}"


def _run_facets(material: Material, kind: str) -> dict[str, Any]:
    packages, state = mapping(material.provenance.get("packages")), material.state
    version = packages.get("lockstep")
    recorded = {
        "run_id": material.run.run_id,
        "tag": material.created.get("tag"),
        "parent": material.parent or None,
        "summary": material.summary,
        "parameters": material.parameters,
    }
    if kind != "START":
        ended = {"status": state.word, "cause": state.cause, "rank": state.rank, "attempts": state.attempt}
        recorded |= {**ended, "results": figures(material)}
    facets = {
        **_facet("lockstep_run", **recorded),
        **_facet(
            "processing_engine",
            name="lockstep",
            version=version if isinstance(version, str) else __version__,
            openlineageAdapterVersion=__version__,
        ),
    }
    if kind in ("FAIL", "ABORT"):
        message = state.message or state.cause or state.word
        facets |= _facet("errorMessage", message=message, programmingLanguage="PYTHON")
    return facets


def _job_facets(material: Material) -> dict[str, Any]:
    facets = _facet("jobType", processingType="BATCH", integration="LOCKSTEP", jobType="TRAINING")
    git = mapping(material.provenance.get("git"))
    remote = git.get("remote")
    if isinstance(remote, str) and _URL.fullmatch(remote):
        told = {"version": git.get("commit"), "branch": git.get("branch")}
        known = {name: value for name, value in told.items() if isinstance(value, str)}
        facets |= _facet("sourceCodeLocation", type="git", url=remote, repoUrl=remote, **known)
    return facets


def _inputs(material: Material) -> list[dict[str, Any]]:
    found = []
    identity = material.data.get("identity")
    if isinstance(identity, str):
        name = f"data/{material.summary.get('dataset', 'data')}"
        splits = {
            split: {key: at(file, key) for key in ("sha256", "bytes", "samples")}
            for split, file in mapping(material.data.get("files")).items()
        }
        found.append(_dataset(name, identity, splits))
    parent, checkpoint = material.parent.get("run_id"), material.parent.get("checkpoint")
    if isinstance(parent, str) and isinstance(checkpoint, str):
        digest = material.parent.get("manifest_sha256")
        found.append(_dataset(f"{parent}/checkpoints/{checkpoint}", digest, {}))
    return found


def _outputs(material: Material, found: dict[str, list[File]]) -> list[dict[str, Any]]:
    """The checkpoints; the version of each is its manifest's digest, which names every byte of it."""
    outputs = []
    for checkpoint, inside in found.items():
        told = {file.name.rpartition("/")[2]: {"sha256": file.sha256, "bytes": file.bytes} for file in inside}
        version = at(told, "manifest.json", "sha256")
        dataset = _dataset(f"{material.run.run_id}/checkpoints/{checkpoint}", version, told)
        size = sum(whole(file.bytes) or 0 for file in inside)
        statistics = _facet("outputStatistics", size=size, fileCount=len(inside))
        outputs.append({**dataset, "outputFacets": statistics})
    return outputs


def _dataset(name: str, version: object, files: dict[str, Any]) -> dict[str, Any]:
    facets = _facet("version", datasetVersion=version) if isinstance(version, str) else {}
    if files:
        facets |= _facet("lockstep_digest", algorithm="sha256", files=files)
    return {"namespace": NAMESPACE, "name": name, "facets": facets}
