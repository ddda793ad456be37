"""One attempt at a run, from the claimed folder to the seal, with Runnable in between."""

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockstep import full_disk, signals
from lockstep.catalog import events, facts, listing, provenance, seal, status
from lockstep.errors import Interrupted, LockstepError, RunFailed
from lockstep.files import read_json, read_object, readable, sha256_of
from lockstep.orchestration import left_behind, plan
from lockstep.orchestration.session import Session, active

INHERITED = ("RUNNABLE_PRM_", "RUNNABLE_PARAMETERS_FILE", "RUNNABLE_CONFIGURATION_FILE", "RUNNABLE_RETRY_")
RUNNABLE_VARIABLES = (
    "RUNNABLE_RUN_ID",
    "RUNNABLE_RUN_TAG",
    "RUNNABLE_RETRY_RUN_ID",
    "RUNNABLE_RETRY_INDICATOR",
)


def attempt(session: Session, argv: Sequence[str], tag: str | None, parent: dict[str, Any] | None) -> int:
    """Execute the pipeline in the run's folder, whose lock the caller holds; returns the exit status."""
    run = session.run
    process, given = status.process_identity(), sha256_of(run.parameters)
    events.append(run, "started", attempt=session.attempt, process=process, parameters_sha256=given)
    recorder = threading.Thread(
        target=_record_provenance, args=(session, argv, parent), name="provenance", daemon=True
    )
    recorder.start()
    ending: dict[str, Any] = {"status": "succeeded", "cause": None, "message": None, "rank": None}
    code = 0
    try:
        with active(session):
            _execute(session, tag)
            if session.stop_signal:
                raise Interrupted(session.stop_signal)
    except Interrupted as error:
        ending |= {"status": "interrupted", "cause": error.signal_name, "message": str(error)}
        code = Interrupted.exit_status
    except Exception as found:
        missing = left_behind.explained(found, session.repeats, session.folder)
        said = full_disk.explained(found) or missing or found
        ending |= _ending(said)
        code = 1
        _explain(session, said)
    signals.ignore()  # it has ended; what is left takes a moment and must be whole
    recorder.join()
    _finish(session, ending)
    return code


def _ending(error: Exception) -> dict[str, Any]:
    cause, rank = getattr(error, "cause", "exception"), getattr(error, "rank", None)
    return {"status": "failed", "cause": cause, "message": _message(error), "rank": rank}


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, LockstepError) else f"{type(error).__name__}: {error}"


def _explain(session: Session, error: Exception) -> None:
    session.display.error(f"error: {_message(error)}")
    if not isinstance(error, (LockstepError, OSError)):
        session.display.error("".join(traceback.format_exception(error)))


def _record_provenance(session: Session, argv: Sequence[str], parent: dict[str, Any] | None) -> None:
    """Runs beside start-up; a failure is told and does not stop the run.

    The history keeps the digest, so that the record of a run that dies unsealed is vouched for from here on.
    """
    run, number = session.run, session.attempt
    try:
        record = provenance.write(run, argv, session.folder, parent=parent, attempt=number)
        path = provenance.file_of(run, number)
        events.append(run, "described", attempt=number, file=path.name, sha256=sha256_of(path))
        for sentence in provenance.not_recorded(record):
            session.warn(sentence)
    except Exception as error:
        session.warn(f"provenance.json could not be written: {type(error).__name__}: {error}")


def _finish(session: Session, ending: dict[str, Any]) -> None:
    """Say in the history how it ended, then seal. On a full disk what was committed stays valid, unsealed."""
    try:
        figures = facts.figures_of(read_object(session.run.results))
        events.append(session.run, "finished", **ending, figures=figures)
        seal.seal(session.run)
    except (OSError, LockstepError) as error:
        said = full_disk.explained(error, then=f"seal it: lockstep seal {session.run.typed}") or error
        session.display.warn(f"the record could not be sealed: {said}. What was written before stays valid")
    listing.note(session.run)


@contextlib.contextmanager
def _environment(session: Session) -> Iterator[None]:
    """Work in the run's folder, with no inherited variable that would overrule the parameters."""
    before, saved = Path.cwd(), dict(os.environ)
    inherited = sorted(name for name in os.environ if name.startswith(INHERITED))
    for name in inherited:
        del os.environ[name]
    if inherited:
        session.warn(
            f"ignored: {', '.join(inherited)} in the environment. What steers a run is its parameters and the command "
            "line alone, so that its record is all of its input; change a parameter by KEY=VALUE"
        )
    path = list(sys.path)
    os.chdir(session.run.path)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path  # Runnable puts the current folder first, once a step
        for name in RUNNABLE_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in saved.items() if name.startswith(INHERITED)})


@contextlib.contextmanager
def _plain_path() -> Iterator[None]:
    """While Runnable looks for its services: it takes each folder of sys.path, and the current one, for UTF-8."""
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if readable(entry) == entry]
    try:
        with contextlib.chdir("/"):
            yield
    finally:
        sys.path[:] = path


def _quiet_runnable() -> None:
    """Import runnable without its banner, and send its console to nowhere (`.quiet` would drop tracebacks)."""
    with contextlib.redirect_stdout(io.StringIO()):
        import runnable
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    runnable.console.file = runnable.task_console.file = nowhere
    logging.getLogger("runnable").addHandler(logging.NullHandler())


def _execute(session: Session, tag: str | None) -> None:
    """Build Runnable's context by hand and run it; raises what a step raised."""
    _quiet_runnable()
    from runnable import context, defaults, exceptions

    from lockstep.orchestration import services

    run = session.run
    with _environment(session):
        services_by_name = {k: v for k, v in defaults.DEFAULT_SERVICES.items() if k != "job_executor"}
        with _plain_path():
            ctx = context.PipelineContext.model_validate(
                {
                    "pipeline_definition_file": "lockstep.orchestration.build.build",
                    "parameters_file": str(run.parameters),
                    "run_id": run.run_id,
                    "tag": "",
                    "execution_mode": context.ExecutionMode.PYTHON,
                    "configuration_file": "",
                    **services_by_name,
                }
            )
            known = ctx.dag_hash
        ctx.tag = tag or ""  # not before: it would go into the environment, which not every locale can write
        ctx.catalog = services.InPlaceCatalog(catalog_location=str(run.path))
        ctx.run_log_store = services.RunLogInFolder(log_folder=str(run.path))
        ctx.pipeline_executor = services.Executor()
        if _can_retry(session, known):
            os.environ["RUNNABLE_RETRY_RUN_ID"] = run.run_id
        try:
            ctx.execute()
        except exceptions.ExecutionFailedError:
            raise session.failure or RunFailed("the pipeline failed; see run_log.json") from None
        except Exception as error:  # on a full disk Runnable's own log fails after the step did
            raise session.failure or error from None
        finally:
            context.set_run_context(None)


def _can_retry(session: Session, dag_hash: str) -> bool:
    """Whether Runnable's log of an earlier attempt can say which steps are done.

    If not (the folder was renamed, a file damaged, the pipeline changed) it is kept aside and every step is
    carried out again, training from its newest checkpoint on.
    """
    from runnable.datastore import RunLog

    path = session.run.run_log
    if not path.exists():
        return False
    try:
        log = RunLog(**read_json(path))
        if log.run_id == session.run.run_id and log.dag_hash == dag_hash and plan.is_sound(session.run):
            return True
    except (OSError, ValueError, TypeError):  # pydantic's error is a ValueError
        pass
    path.rename(path.with_name(f"run_log.before-attempt-{session.attempt}.json"))
    return False


def step_seconds(session: Session) -> list[tuple[str, float]]:
    """What each step of this attempt took, from the history."""
    lines = events.read(session.run)
    first = max((i for i, line in enumerate(lines) if line["event"] == "started"), default=0)
    return [(line["step"], line["seconds"]) for line in lines[first:] if line["event"] == "step_finished"]
