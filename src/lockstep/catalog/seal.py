"""The seal: a manifest of the whole run, written when everything else has been, and its verification.

The manifest covers every file, and events.jsonl up to a stated length; the `sealed` event that follows
carries the manifest's digest, and its time stands in the manifest. So no byte of a sealed run, not even of
that last event, can change unseen.
"""

import hashlib
from collections.abc import Mapping

from lockstep.catalog import events
from lockstep.catalog.manifest import (
    MANIFEST,
    entries,
    manifest_bytes,
    outside_the_seal,
    parse_manifest,
    read_up_to,
    verify_folder,
    write_manifest,
)
from lockstep.catalog.run import Run
from lockstep.files import write_atomically

__all__ = ["seal", "verify_folder", "verify_seal", "write_manifest"]


def seal(run: Run, known: Mapping[str, str] | None = None) -> str:
    """Write the run's manifest, then the `sealed` event that carries its digest; returns that digest.

    ``known`` holds digests by path in the run, which the caller has taken already; those files are not read
    again. The manifest of an earlier attempt is kept beside the new one.
    """
    _keep_earlier(run)
    files = entries(run.path, known or {}, outside_the_seal(run.path))
    history = run.events.read_bytes()
    time = events.utc_now()
    content = manifest_bytes(
        {
            "algorithm": "sha256",
            "events": {"bytes": len(history), "sha256": hashlib.sha256(history).hexdigest()},
            "files": files,
            "time": time,
        }
    )
    write_atomically(run.manifest, content)
    digest = hashlib.sha256(content).hexdigest()
    events.append(run, "sealed", time=time, manifest_sha256=digest)
    return digest


def verify_seal(run: Run) -> list[str]:
    """All that is wrong with a sealed run: its files, its history, and that the two vouch for each other."""
    findings = verify_folder(run.path) + events.check_chain(run)
    try:
        content = run.manifest.read_bytes()
    except OSError:
        return findings
    manifest = parse_manifest(content)
    if manifest is None or "events" not in manifest:
        return findings or [f"{MANIFEST} is no seal of a run"]
    history = read_up_to(run.events, None)
    before, after = history[: manifest["events"]["bytes"]], history[manifest["events"]["bytes"] :]
    sealed = events.expected_line(
        before, "sealed", manifest["time"], manifest_sha256=hashlib.sha256(content).hexdigest()
    )
    if not after.startswith(sealed):
        findings.append(f"events.jsonl does not tell of this {MANIFEST}: one of the two was changed")
    return findings


def _keep_earlier(run: Run) -> None:
    """Keep the manifest of an earlier attempt as manifest.attempt-N.json, before a new one is written."""
    try:
        content = run.manifest.read_bytes()
    except FileNotFoundError:
        return
    digest = hashlib.sha256(content).hexdigest()
    started, number = 0, 1
    for event in events.read(run):
        started += event["event"] == "started"
        if event["event"] == "sealed" and event.get("manifest_sha256") == digest:
            number = max(1, started)
    while (kept := run.path / f"manifest.attempt-{number}.json").exists():
        if kept.read_bytes() == content:
            return  # an earlier seal was cut short right after this
        number += 1
    write_atomically(kept, content)
