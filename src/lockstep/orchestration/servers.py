"""What the server processes of a strategy did, from the lines that they wrote."""

import re
from collections import Counter
from typing import Any

from lockstep.catalog.run import Run
from lockstep.files import read_json_lines

_NAME = re.compile(r"server-(\d+)(?:\.attempt-(\d+))?\.jsonl")


def summary(run: Run) -> list[dict[str, Any]]:
    """For each server: its share of the weights, and by how many updates the gradients it took were behind.

    For a step that was repeated after a crash the last update counts.
    """
    files = []
    for path in run.metrics.iterdir():
        if found := _NAME.fullmatch(path.name):
            files.append((int(found[1]), int(found[2] or 1), path))
    servers: dict[int, dict[str, Any]] = {}
    updates: dict[int, dict[tuple[int, int | None], dict[str, Any]]] = {}
    for number, _, path in sorted(files):
        server = servers.setdefault(number, {"server": number, "bytes": 0, "starts": 0, "wire_bytes": 0})
        for line in read_json_lines(path):
            match line.get("kind"):
                case "start":
                    server["bytes"] = line["bytes"]
                    server["starts"] += 1
                case "update":
                    updates.setdefault(number, {})[line["step"], line["rank"]] = line
                case "end":
                    server["wire_bytes"] += line["wire_bytes"]
    return [{**server, **_counted(updates.get(number, {}))} for number, server in sorted(servers.items())]


def _counted(updates: dict[tuple[int, int | None], dict[str, Any]]) -> dict[str, Any]:
    staleness = Counter(line["staleness"] for line in updates.values())
    total = sum(staleness.values())
    return {
        "updates": total,
        "update_seconds": sum(line["update_seconds"] for line in updates.values()),
        "mean_staleness": sum(value * count for value, count in staleness.items()) / total if total else None,
        "staleness": {str(value): staleness[value] for value in sorted(staleness)},
    }


def in_words(found: list[dict[str, Any]]) -> str:
    """One line for the display, about the first server: the others see the same gradients."""
    first = found[0]
    most = max(map(int, first["staleness"]), default=0)
    mean = first["mean_staleness"] or 0.0
    return f"{first['updates']:,} updates by gradients {mean:.1f} updates old on average, {most} at most"
