"""What every command does with an error: one message for the user's own, the exit status that says which kind."""

import os
import signal
import sys
import threading
from collections.abc import Callable

from lockstep import full_disk, signals
from lockstep.console import forgive
from lockstep.errors import Interrupted, LockstepError, UsageError
from lockstep.files import printable


def guarded(command: Callable[[], int]) -> int:
    """Run a command; 0 done, 1 failed, 2 bad input or usage, 130 interrupted.

    What it does about signals ends with it: it may have been called from a program or notebook that goes on.
    """
    open_streams()
    with signals.restored():
        return _guarded(command)


def _guarded(command: Callable[[], int]) -> int:
    if (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGTERM, _end)  # so that what was begun is tidied away
    try:
        return int(command())
    except LockstepError as error:
        return _said(str(error), error.exit_status)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to tell
        return 0
    except UnicodeEncodeError as error:
        if error.encoding != sys.getfilesystemencoding():
            raise
        return _said(
            f"{error.object!r} cannot be the name of a file where names are {error.encoding}, as this locale has them: "
            "start with LC_ALL=C.UTF-8, or with PYTHONUTF8=1",
            UsageError.exit_status,
        )
    except OSError as error:
        return _said(_in_words(error), 1)
    except KeyboardInterrupt:
        return Interrupted.exit_status


def _in_words(error: OSError) -> str:
    if full := full_disk.explained(error, then="try again"):
        return str(full)
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"


def open_streams() -> None:
    """Standard streams that take any text, and nowhere in place of those that the command was started without (`>&-`).

    Otherwise the next file to be opened would get their number, and what others print would land in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False, encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False, encoding="utf-8")
    forgive(sys.stdout, sys.stderr)


def _end(number: int, _: object) -> None:
    """End as a signal does, by way of everything that tidies up."""
    raise SystemExit(128 + number)


def _said(message: str, status: int) -> int:
    sys.stderr.write(f"error: {printable(message)}\n")  # it may quote a record or a name
    return status
