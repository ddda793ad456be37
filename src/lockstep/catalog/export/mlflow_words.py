"""A record in the words that MLflow allows: keys and values of limited length, and tags."""

import re
from typing import Any

from lockstep import strict_json
from lockstep.catalog.export.material import Material
from lockstep.catalog.report.values import at, mapping

LONGEST_PARAMETER, LONGEST_TAG, LONGEST_KEY = 500, 5000, 250
_NOT_A_KEY = re.compile(r"[^A-Za-z0-9_./ -]")


def tags_of(material: Material, parent_run: str | None) -> dict[str, str]:
    """What the run was, how it ended, and where it came from; a parent that was exported is named as well."""
    git, parent = mapping(material.provenance.get("git")), material.parent
    told = {
        "lockstep.run_id": material.run.run_id,
        "lockstep.tag": material.created.get("tag"),
        "lockstep.status": material.state.word,
        "lockstep.cause": material.state.cause,
        "lockstep.message": material.state.message,
        "lockstep.rank": material.state.rank,
        "lockstep.attempts": material.state.attempt,
        "lockstep.data_identity": material.data.get("identity"),
        "lockstep.uv_lock_sha256": at(material.provenance, "uv_lock", "sha256"),
        "lockstep.manifest_sha256": sealed(material),
        "lockstep.dirty": git.get("dirty"),
        "lockstep.parent": parent.get("run_id"),
        "lockstep.parent_kind": parent.get("kind", "resumed") if parent else None,
        "lockstep.parent_checkpoint": parent.get("checkpoint"),
        "lockstep.parent_manifest_sha256": parent.get("manifest_sha256"),
        "lockstep.parent_mlflow_run": parent_run,
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "mlflow.source.git.repoURL": git.get("remote"),
        "mlflow.source.name": next(iter(_argv(material)), None),
    }
    return {
        name: value_of(value, LONGEST_TAG)
        for name, value in told.items()
        if isinstance(value, str | int | float)
    }


def _argv(material: Material) -> list[Any]:
    argv = material.provenance.get("argv")
    return argv if isinstance(argv, list) else []


def sealed(material: Material) -> object:
    """The digest of the last seal's manifest, as the history has it; None without one."""
    sealed = [event for event in material.history if event["event"] == "sealed"]
    return sealed[-1].get("manifest_sha256") if sealed else None


def key_of(name: str) -> str:
    """A parameter's name in the letters that MLflow allows."""
    return _NOT_A_KEY.sub("_", name)[:LONGEST_KEY].strip("./ ") if name else ""


def value_of(value: object, longest: int = LONGEST_PARAMETER) -> str:
    """A value as text of a length that MLflow takes; what is no text is written as JSON."""
    text = value if isinstance(value, str) else strict_json.encode(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
