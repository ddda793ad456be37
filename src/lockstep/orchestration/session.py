"""What the steps of one pipeline share while it runs in this process: the server, the display, the stop signal."""

import contextlib
import signal
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from lockstep import signals
from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.errors import Interrupted
from lockstep.launchers.client import Server
from lockstep.orchestration.display import Display


@dataclass
class Session:
    """One attempt at one run."""

    run: Run
    display: Display
    folder: Path  # where the command was started; the user's own modules are found there
    server: Server | None = None
    attempt: int = 1
    began: float = field(default_factory=time.monotonic)
    repeats: Run | None = None  # the run whose record this one is to repeat
    failure: Exception | None = None  # what a step raised: Runnable keeps only that one did
    stoppable: bool = False  # while the ranks train, a first Ctrl-C asks them to stop
    stop_signal: str | None = None
    told: set[str] = field(default_factory=set)  # notes of rank 0 that the user has been told

    def ranks_server(self, start_method: str) -> Server:
        """The server that was started first, or one of its own where a step runs alone (a pod, a test)."""
        if self.server is None:
            self.server = Server()
        self.server.prepare(start_method, self.folder)
        return self.server

    def warn(self, message: str) -> None:
        """Tell the user, and keep it in the run's history."""
        events.append(self.run, "warning", message=message)
        self.display.warn(message)


_current: ContextVar[Session | None] = ContextVar("lockstep_session", default=None)


def current() -> Session:
    """This pipeline's session; a step that another executor runs alone gets a plain one."""
    session = _current.get()
    if session is None:
        session = Session(Run(Path.cwd()), Display(), Path.cwd())
        _current.set(session)
    return session


@contextlib.contextmanager
def active(session: Session) -> Iterator[Session]:
    """Make it the current one, with SIGINT, SIGTERM and SIGHUP turned into an orderly stop."""

    def on_signal(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        first = session.stop_signal is None
        # Remembered as well as raised: Python drops what is raised where an object is just being finalised.
        session.stop_signal = session.stop_signal or name
        if session.stoppable and first:
            session.display.stopping(name)
            return
        raise Interrupted(name)

    token = _current.set(session)
    try:
        with signals.handled(signals.heeded(), on_signal):
            yield session
    finally:
        _current.reset(token)
