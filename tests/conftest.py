"""What the tests of training share: one fork server for all of them, and runs of the real command."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A script's `pytest &` ignores SIGINT, and all that it starts would: those that are sent a Ctrl-C have to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "crash",
    "promises",
    "main_job",
    "tensor",
    "allreduce",
    "parameter_server",
    "tutorial",
    "rough_use",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    if not HAS_TORCH:
        for item in items:
            if not {"server", "command", "main_job"}.isdisjoint(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.skip(reason="torch is not installed"))


def files_that_import(module: str) -> list[str]:
    """The test files that import a module, by themselves or by a helper beside them: without it they cannot be read."""
    rooms = "engine|strategies|transports|compressors|models|bench|launchers.server"
    itself = re.compile(rf"^\s*(import|from) ({module}|lockstep\.({rooms}))\b|importorskip", re.MULTILINE)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py")}
    found = {name for name, text in texts.items() if itself.search(text)} - {"conftest"}
    while True:
        imports = re.compile(rf"^\s*(import|from) ({'|'.join(sorted(found)) or '-'})\b", re.MULTILINE)
        more = {name for name, text in texts.items() if name not in found and imports.search(text)}
        if not more:
            return [f"{name}.py" for name in sorted(found) if name.startswith("test_")]
        found |= more


HAS_TORCH = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
collect_ignore = [] if HAS_TORCH else files_that_import("torch")


@pytest.fixture(scope="session")
def server() -> Iterator["object"]:
    """The server that imports torch once; every rank of the tests that train in place is forked from it."""
    from lockstep.launchers import client

    # What one training in ten would import in each of its processes; what a user's ranks import is looked at elsewhere.
    client.RANK_MODULES += ("lockstep.strategies.fsdp", "torch.nested._internal.nested_tensor")
    with client.Server() as started:
        started.prepare("forkserver", Path(__file__).parent)
        yield started


class Command:
    """`uv run pipeline.py` as a user runs it, in a catalog of its own."""

    def __init__(self, catalog: Path) -> None:
        self.catalog = catalog

    def start(self, *words: str, **options: object) -> subprocess.Popen[str]:
        """In a process group of its own, as a terminal would; output is one text."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / "pipeline.py"), "--catalog", str(self.catalog), *words],
            cwd=options.pop("cwd", ROOT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def run(self, *words: str, status: int = 0, **options: object) -> str:
        """To its end; the output."""
        process = self.start(*words, **options)
        output, _ = process.communicate(timeout=110)
        assert process.returncode == status, f"exit status {process.returncode}, not {status}:\n{output}"
        assert "Traceback" not in output or status == 1, output
        return output

    def start_and_wait_for_step(self, run_id: str, step: int, *words: str) -> subprocess.Popen[str]:
        """Start, and return when rank 0 has written the line of that step."""
        process = self.start("--run-id", run_id, *words)
        files = [self.catalog / run_id / "metrics" / "rank-0.jsonl"]
        wait_until(
            lambda: process.poll() is not None or any(f'"step": {step},' in _text(file) for file in files)
        )
        assert process.poll() is None, process.communicate()[0]
        return process


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll until it holds; fail after a time that no healthy machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The processes below one, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            child = int(path.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def rank_pids(catalog: Path, run_id: str) -> list[int]:
    """The pids of a run's ranks, as their metrics tell."""
    from lockstep.files import read_json_lines

    pids = []
    for path in sorted((catalog / run_id / "metrics").glob("rank-*.jsonl")):
        pids += [line["pid"] for line in read_json_lines(path) if line["kind"] == "start"]
    return pids


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """A command in a fresh catalog; whatever it started is ended afterwards."""
    made = Command(tmp_path / "catalog")
    yield made
    for pid in descendants(os.getpid()):
        line = Path(f"/proc/{pid}/cmdline").read_bytes() if alive(pid) else b""
        if str(made.catalog).encode() in line:
            os.kill(pid, signal.SIGKILL)
