"""What every command does with an error: one message for the user's own, the exit status that says which kind."""

import sys
from collections.abc import Callable

from lockstep.errors import Interrupted, LockstepError


def guarded(command: Callable[[], int]) -> int:
    """Run a command; 0 done, 1 failed, 2 bad input or usage, 130 interrupted."""
    try:
        return int(command())
    except LockstepError as error:
        return _said(str(error), error.exit_status)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to tell
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _said(f"{name}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return Interrupted.exit_status


def _said(message: str, status: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return status
