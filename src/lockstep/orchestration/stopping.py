"""Signals while another program works for us: handed on to it, so that it ends in order and we tidy up after it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lockstep import linux, signals
from lockstep.errors import Interrupted


class Stop:
    """Hands SIGINT, SIGTERM and SIGHUP on to the process that is running, which ends in order."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.name: str | None = None

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Remember it; with no process to hand it to, stop here."""
        self.name = signal.Signals(number).name
        if self.process is None:
            raise Interrupted(self.name)
        self.process.send_signal(number)

    def run(self, command: list[str], folder: Path, environment: dict[str, str], output: Any) -> int:
        """Run a process to its end, in a group of its own, so that a Ctrl-C reaches it once; it dies with us."""
        parent = os.getpid()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            process_group=0,
            preexec_fn=lambda: linux.die_with_parent(parent),  # noqa: PLW1509 - this process has one thread
        )
        self.process = process
        try:
            if self.name is not None:  # it came while the process was being started
                process.terminate()
            exit_status = process.wait()
        finally:
            self.process = None
        if self.name is not None:
            raise Interrupted(self.name)
        return exit_status


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals end the repetition in order, and whatever was made for it is tidied up."""
    stop = Stop()
    with signals.handled(signals.heeded(), stop.on_signal):
        yield stop
