"""The pipeline's end of the fork server. Imports no torch."""

import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep.errors import RunFailed
from lockstep.linux import process_state, start_ticks

RANK_MODULES = (
    "lockstep.engine.rank",
    "lockstep.engine.evaluation",
    "lockstep.models",
    "lockstep.strategies.ddp",
)


class Server:
    """A fork server and the group of processes that it runs at the moment."""

    def __init__(self) -> None:
        """Start the process; it goes on importing by itself."""
        ours, theirs = socket.socketpair()
        # A file without a name: what the server says before there is a run folder, and nothing to clean up.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._socket = ours
        # -P: the folder the command runs in must not shadow modules of the standard library or torch.
        command = [
            sys.executable,
            "-P",
            "-m",
            "lockstep.launchers.server",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=os.environ
            | {"PYTHONIOENCODING": "utf-8:backslashreplace"},  # its output, and its ranks', is a log
        )
        theirs.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ)
        self._buffer = b""
        self._group = 0  # the one that was started last
        self._method = ""
        self.failure: RunFailed | None = None  # why it can start nothing any more
        self._pids: list[tuple[int, int | None]] = []

    def prepare(self, start_method: str, folder: Path, strategy: str | None = None) -> None:
        """Say how ranks will be started and where the user's own modules are found, once both are known.

        With the name of the strategy, what that needs is imported now, while the pipeline does other things.
        """
        if self._method:
            return
        self._method = start_method
        paths = [*(str(Path(path).absolute()) if path else str(folder) for path in sys.path), str(folder)]
        self._send(
            order="prepare",
            sys_path=list(dict.fromkeys(paths)),
            method=start_method,
            modules=[*RANK_MODULES, *_modules_of(strategy)],
        )

    def start(self, target: str, arguments: list[Any], count: int, strategy: str | None = None) -> None:
        """Order ``count`` processes that call ``target(index, *arguments, parent_pid)``."""
        self._group += 1
        self._send(
            order="start",
            group=self._group,
            target=target,
            arguments=arguments,
            count=count,
            method=self._method,
            modules=_modules_of(strategy),
        )

    def kill_group(self) -> None:
        """SIGKILL every process of the group that is still alive."""
        self._send(order="kill")

    def poll(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that arrive within the time; RunFailed where the server itself is gone."""
        if self.failure is not None:
            raise self.failure
        if b"\n" not in self._buffer and not self._selector.select(seconds):
            return []
        data = self._socket.recv(1 << 16)
        if not data:
            self.failure = RunFailed(
                f"the process that starts the ranks ended: {self._last_words()}", "signal"
            )
            raise self.failure
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if message["event"] == "failed":
                more = "" if message.get("explained") else f"\n{self._last_words()}"
                self.failure = RunFailed(f"ranks cannot be started: {message['message']}{more}")
                raise self.failure
            if message["event"] == "started" and message["group"] == self._group:
                self._pids = [(pid, start_ticks(pid)) for pid in message["pids"]]
        # The last deaths of a group that was ended may be told when the next one has been ordered.
        return [message for message in messages if message.get("group", self._group) == self._group]

    def _last_words(self) -> str:
        with contextlib.suppress(
            subprocess.TimeoutExpired
        ):  # its end of the socket closes a moment before it is gone
            self._process.wait(timeout=1)
        code = self._process.poll()
        self._output.seek(0)
        tail = self._output.read().decode(errors="replace").strip().splitlines()[-15:]
        status = f"exit status {code}" if code is None or code >= 0 else f"signal {-code}"
        return "\n".join([status, *tail])

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # poll() says that it is gone
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def close(self) -> None:
        """End the server and with it every rank, and wait until they are gone."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._socket.close()
        self._output.close()
        deadline = time.monotonic() + 5
        for pid, ticks in self._pids:
            while ticks is not None and start_ticks(pid) == ticks and time.monotonic() < deadline:
                if _is_zombie(pid):
                    break
                time.sleep(0.005)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _modules_of(strategy: str | None) -> list[str]:
    """What a strategy that comes with the package is imported from; the user's own is imported by the ranks."""
    return [f"lockstep.strategies.{strategy}"] if strategy and strategy.isidentifier() else []


def _is_zombie(pid: int) -> bool:
    """Dead, and waiting for an init that may never come (a container without one)."""
    return process_state(pid) in ("Z", "X")


@contextlib.contextmanager
def ended_on_exit(server: Server) -> Iterator[Server]:
    """The server, closed whatever happens."""
    try:
        yield server
    finally:
        server.close()
