"""Starting the jobs of transport_ranks: on real processes, forked by the tests' one server, or on threads."""

import json
import time
from pathlib import Path
from typing import Any

import transport_ranks as ranks_of
from lockstep.transports.base import TransportError


class Start:
    """Starts a job on processes. Ranks that a failed test left are ended by ``close``."""

    def __init__(self, server: Any, folder: Path) -> None:
        self.server, self.folder, self.pids = server, folder, []

    def __call__(self, job: str, count: int, **options: Any) -> list[int]:
        """Start it; the pids."""
        for path in self.folder.glob("*-*"):
            path.unlink()
        self.server.start("transport_ranks:main", [str(self.folder), job, options], count)
        self.pids = self._until("started")["pids"]
        return self.pids

    def _until(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            for message in self.server.poll(0.1):
                if message["event"] == event:
                    return message
        raise AssertionError(f"waited for {event} in vain")

    def wait(self) -> None:
        """Until all have ended; a failed assertion of theirs is ours."""
        self._until("all_ended")
        self.pids = []
        for word in sorted(self.folder.glob("failed-*")):
            raise AssertionError(f"{word.name}:\n{word.read_text()}")

    def result(self, rank: int) -> Any:
        """What a rank left, or None."""
        path = self.folder / f"result-{rank}"
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, job: str, count: int, transport: str, **options: Any) -> list[Any]:
        """A job to its end, on threads where the transport joins threads; what each rank returns."""
        if transport != "queue":
            self(job, count, transport=transport, **options)
            self.wait()
            return [self.result(rank) for rank in range(count)]
        work = getattr(ranks_of, job)

        def one(rank: int) -> Any:
            try:
                return work(rank, self.folder, transport=transport, **options)
            except TransportError as error:
                return ranks_of.described(error)

        return ranks_of.in_threads(count, one)

    def close(self) -> None:
        """End what is left."""
        if self.pids:
            self.server.kill_group()
            self.wait()
