"""An in-toto Statement v1 with SLSA Provenance v1: which inputs and which code made these checkpoints.

Sources: in-toto attestation framework, spec/v1 (statement, resource_descriptor, digest_set); SLSA provenance v1
(buildDefinition, runDetails). The statement is unsigned: what a signature on it would prove is up to who signs.
"""

import re
from typing import Any
from urllib.parse import quote

from lockstep import __version__
from lockstep.catalog.export.material import (
    HISTORY,
    MODEL,
    File,
    Material,
    figures,
    files,
    nothing_to_say,
    refuse_unfinished,
    timestamp,
)
from lockstep.catalog.report.values import mapping, number
from lockstep.catalog.text import json_safe

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:lockstep:train:1"
BUILDER = "urn:lockstep:builder:local:1"  # the user's own machine: no hosted or hardened platform is claimed
_INPUTS = ("data/", "start/", "uv.lock", "source.patch", "parameters.yaml")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]+")
_PACKAGE = re.compile(r"[A-Za-z0-9._+!-]{1,100}")


def statement(material: Material) -> dict[str, Any]:
    """The statement as a JSON value. Raises CorruptRecord, or UsageError where there is nothing to state."""
    refuse_unfinished(material, "a statement on it")
    found = files(material)
    subject = [file for file in found if file.name.startswith("checkpoints/") or file.name == MODEL]
    if not subject:
        raise nothing_to_say(material, "the statement")
    value = {
        "_type": STATEMENT,
        "subject": [_of_file(file) for file in subject],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"parameters": material.parameters},
                "internalParameters": {
                    "plan": material.plan,
                    "environment": mapping(material.provenance.get("environment")),
                    "machine": mapping(material.provenance.get("machine")),
                },
                "resolvedDependencies": _dependencies(material, found),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": _versions(material)},
                "metadata": _metadata(material),
                "byproducts": _byproducts(material, found, subject),
            },
        },
    }
    safe: dict[str, Any] = json_safe(value, depth=24)
    return safe


def _of_file(file: File, **annotations: object) -> dict[str, Any]:
    descriptor: dict[str, Any] = {"name": file.name, "digest": {"sha256": file.sha256}}
    return {**descriptor, "annotations": {"bytes": file.bytes, **annotations}}


def _is_input(file: File) -> bool:
    return file.name.startswith(_INPUTS)


def _dependencies(material: Material, found: list[File]) -> list[dict[str, Any]]:
    return [
        *_source(mapping(material.provenance.get("git"))),
        *_dataset(material),
        *(_of_file(file) for file in found if _is_input(file)),
        *_parent(material.parent),
        *_packages(mapping(material.provenance.get("packages"))),
    ]


def _source(git: dict[str, Any]) -> list[dict[str, Any]]:
    """The commit. Changes beside it are source.patch, a dependency of its own."""
    commit, remote = git.get("commit"), git.get("remote")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        return []
    descriptor: dict[str, Any] = {"name": "source", "digest": {"gitCommit": commit}}
    if isinstance(remote, str) and _REMOTE.fullmatch(remote):
        descriptor["uri"] = f"git+{remote}@{commit}"
    return [{**descriptor, "annotations": {"branch": git.get("branch"), "dirty": git.get("dirty")}}]


def _dataset(material: Material) -> list[dict[str, Any]]:
    """The data as a whole, by the digest that identifies it."""
    identity, made_from = material.data.get("identity"), mapping(material.data.get("made_from"))
    if not isinstance(identity, str) or not _DIGEST.fullmatch(identity):
        return []
    return [{"name": "dataset", "digest": {"sha256": identity}, "annotations": {"made_from": made_from}}]


def _parent(parent: dict[str, Any]) -> list[dict[str, Any]]:
    """The checkpoint that the run started from, by the digest of its manifest."""
    digest, run_id = parent.get("manifest_sha256"), parent.get("run_id")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or not isinstance(run_id, str):
        return []
    about = {key: parent.get(key) for key in ("run_id", "checkpoint", "kind") if parent.get(key) is not None}
    return [{"name": "parent checkpoint", "digest": {"sha256": digest}, "annotations": about}]


def _packages(packages: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "uri": f"pkg:pypi/{quote(name.lower())}@{quote(version)}"}
        for name, version in sorted(packages.items())
        if name not in ("python", "uv")
        and isinstance(version, str)
        and _PACKAGE.fullmatch(name)
        and _PACKAGE.fullmatch(version)
    ]


def _versions(material: Material) -> dict[str, str]:
    packages = mapping(material.provenance.get("packages"))
    recorded = {name: packages.get(name) for name in ("lockstep", "torch", "python")}
    known = {name: version for name, version in recorded.items() if isinstance(version, str)}
    return {"lockstep": __version__, **known}


def _metadata(material: Material) -> dict[str, str]:
    times = {"startedOn": timestamp(material.began), "finishedOn": timestamp(material.ended)}
    return {
        "invocationId": material.run.run_id,
        **{name: time for name, time in times.items() if time is not None},
    }


def _byproducts(material: Material, found: list[File], subject: list[File]) -> list[dict[str, Any]]:
    """Everything else that the run wrote; the history as far as the seal covers it, with how it ended."""
    rest = [file for file in found if file not in subject and not _is_input(file)]
    outcome = {"status": material.state.word, "cause": material.state.cause, **figures(material)}
    described = [
        _of_file(file, **outcome) if file.name == "distributed_training_results.json" else _of_file(file)
        for file in rest
    ]
    if material.seal is None:
        return described
    history = material.seal["events"]
    about = {"bytes": int(number(history["bytes"]) or 0), "status": material.state.word}
    return [
        *described,
        {"name": HISTORY, "digest": {"sha256": history["sha256"]}, "annotations": about},
    ]
