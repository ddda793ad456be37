"""Every error that a user can meet, as one tree.

    LockstepError            one message: what was found, what is allowed, what to do; exit status 1
    ├── UsageError           bad input or usage: nothing was started, nothing was written; exit status 2
    │   └── ParametersError  the same, naming file, line and key
    ├── MissingPackage       an optional package is not installed; exit status 2
    ├── CorruptRecord        bytes on disk do not match their manifest
    └── RunFailed            a run that started and failed; carries the cause that the record keeps
    Interrupted              Ctrl-C or SIGTERM; not an Exception, so that nothing swallows it; exit status 130

Anything else that is raised is a fault of this program, and shows a traceback.
"""


class LockstepError(Exception):
    """An error whose message is all that the user needs; the command line prints it without a traceback."""

    exit_status = 1


class UsageError(LockstepError):
    """Bad input or usage. Raised before anything is written."""

    exit_status = 2


class ParametersError(UsageError):
    """A parameter file or an override that cannot be accepted."""


class MissingPackage(UsageError):
    """An optional package is needed and absent; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, wanted_by: str, command: str = "pipeline.py") -> None:
        super().__init__(
            f"{wanted_by} needs the package {package}, which is not installed. "
            f"Install it: uv pip install {package}; or, where lockstep itself is the project, name its extra: "
            f"uv run --extra {extra} {command}"
        )


class CorruptRecord(LockstepError):
    """Recorded bytes are not what their manifest says. The message names the file."""


class RunFailed(LockstepError):
    """A run that started and ended in failure.

    ``cause`` is the word that the record keeps: exception, signal, out of memory, disk full, hang,
    diverged, not finite.
    """

    def __init__(self, message: str, cause: str = "exception", rank: int | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.rank = rank
        self.server: int | None = None  # where a server process of the strategy failed, its number


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM reached the run. ``signal_name`` says which."""

    exit_status = 130

    def __init__(self, signal_name: str = "SIGINT") -> None:
        super().__init__(f"interrupted by {signal_name}")
        self.signal_name = signal_name
