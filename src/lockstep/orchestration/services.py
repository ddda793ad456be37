"""Runnable's services over a run's folder: a catalog in place, an atomic run log, an executor that records faults.

The folder is the catalog and the working folder at once, so nothing is copied and a killed process loses nothing.
"""

import contextlib
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from extensions.catalog.file_system import FileSystemCatalog
from extensions.pipeline_executor.local import LocalExecutor
from extensions.run_log_store.file_system import FileSystemRunLogstore
from runnable import defaults, task_console
from runnable.datastore import DataCatalog, RunLog, StepAttempt

from lockstep import full_disk, strict_json
from lockstep.catalog import events
from lockstep.errors import Interrupted
from lockstep.files import read_json, write_atomically
from lockstep.orchestration.session import current


class InPlaceCatalog(FileSystemCatalog):  # type: ignore[misc]
    """Records names and hashes; every file already stands where it belongs."""

    def get_catalog_location(self) -> Path:
        """The run's folder."""
        return Path(self.catalog_location)

    def upload_to_catalog(self, file: Path) -> None:
        """Nothing to copy."""

    def download_from_catalog(self, file: Any) -> None:
        """Nothing to copy."""

    def get(self, name: str) -> list[DataCatalog]:
        """As the stock catalog; Runnable would call the paths absolute ones otherwise."""
        found: list[DataCatalog] = super().get(name)
        return found


class RunLogInFolder(FileSystemRunLogstore):  # type: ignore[misc]
    """``run_log.json`` in the run's folder (``log_folder``), replaced atomically: no reader sees a part of it."""

    def write_to_path(self, run_log: RunLog) -> None:
        """Write the log so that a crash leaves the old one or the new one."""
        text = strict_json.encode(run_log.model_dump(), indent=1)
        write_atomically(Path(self.log_folder) / "run_log.json", text + "\n")

    def read_from_path(self, run_id: str) -> RunLog:  # noqa: ARG002 - one log a folder
        """Read it back; FileNotFoundError where there is none."""
        return RunLog(**read_json(Path(self.log_folder) / "run_log.json"))


class Executor(LocalExecutor):  # type: ignore[misc]
    """The local executor, with each step's beginning and end in the run's history, however it ends."""

    def _execute_node(self, node: Any, iter_variable: Any = None, mock: bool = False) -> None:
        if node._is_terminal_node():
            super()._execute_node(node, iter_variable=iter_variable, mock=mock)
            return
        session = current()
        if session.stop_signal:
            raise Interrupted(session.stop_signal)
        session.failure = None
        began = time.monotonic()
        events.append(session.run, "step_started", step=node.name)
        session.display.step_started(node.name)
        status = "failed"
        try:
            super()._execute_node(node, iter_variable=iter_variable, mock=mock)
            if session.failure is None:
                status = "succeeded"
            else:
                self._say_why(node, session.failure)
        except BaseException as error:
            # Neither a signal nor a file that is missing from the catalog is an ordinary failure to Runnable:
            # it would leave the step "processing" for ever.
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            self._record_attempt(node, error)
            raise
        finally:
            seconds = time.monotonic() - began
            with contextlib.suppress(OSError):  # a full disk must not hide why the step failed
                events.append(session.run, "step_finished", step=node.name, status=status, seconds=seconds)
            session.display.step_finished(node.name, status, seconds)

    def _say_why(self, node: Any, error: Exception) -> None:
        """Put the exception's own text where Runnable has only "did not succeed"."""
        store, run_id = self._context.run_log_store, self._context.run_id
        log = store.get_step_log(node._get_step_log_name(None), run_id)
        log.attempts[-1].message = str(error)
        store.add_step_log(log, run_id)

    def _record_attempt(self, node: Any, error: BaseException) -> None:
        """Close the step and the run as failed, with what was written so far."""
        with contextlib.suppress(OSError):
            store, run_id = self._context.run_log_store, self._context.run_id
            log = store.get_step_log(node._get_step_log_name(None), run_id)
            now = str(datetime.now())
            message = f"{type(error).__name__}: {error}"
            log.attempts.append(
                StepAttempt(
                    status=defaults.FAIL,
                    start_time=now,
                    end_time=now,
                    message=message,
                    attempt_number=len(log.attempts) + 1,
                )
            )
            log.status = defaults.FAIL
            self._context_node = node
            log.add_data_catalogs(self._sync_catalog("put", allow_file_no_found_exc=True) or [])
            store.add_step_log(log, run_id)
            run_log = store.get_run_log_by_id(run_id)
            run_log.status = defaults.FAIL
            store.put_run_log(run_log)
            self.add_task_log_to_catalog(node.name)

    def add_task_log_to_catalog(self, name: str, iter_variable: Any = None) -> None:  # noqa: ARG002
        """Keep the step's output as logs/<step>.log; the stock one is put in place and then removed."""
        text = task_console.export_text(clear=True)
        path = Path("logs") / f"{name}.log"
        with (
            full_disk.needing(path.absolute(), len(text)),
            path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(text)

    def add_code_identities(self, node: Any, attempt_log: StepAttempt) -> None:
        """provenance.json says it, with staged and untracked changes and without credentials."""
