"""Handlers of signals for as long as something runs, put back afterwards: a command may be one call among others."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextlib.contextmanager
def handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Have these signals handled in this way.

    Python lets only the main thread decide on signals: in another thread nothing changes, and what the main thread
    has chosen stays in force.
    """
    with restored():
        if _decides():
            for number in numbers:
                signal.signal(number, handler)
        yield


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Put back at the end whatever is changed about the signals that stop a run."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        if _decides():
            for number, handler in before.items():
                if handler is not None and signal.getsignal(number) is not handler:  # None: not set by Python
                    signal.signal(number, handler)


def ignore(numbers: Iterable[signal.Signals] = STOPPING) -> None:
    """Ignore signals from here on, until what ``restored`` surrounds is over."""
    if _decides():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def heeded() -> list[signal.Signals]:
    """The signals that stop a run: not a hang-up that it was started to ignore, as ``nohup`` does."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPPING if not (ignored and number == signal.SIGHUP)]


def _decides() -> bool:
    return threading.current_thread() is threading.main_thread()
