"""The closing .pt of a run in which no rank holds the whole state: put together from the last checkpoint's slices.

By a process of its own, when the ranks have ended and their memory is free.
"""

from pathlib import Path

from lockstep.catalog.run import Run
from lockstep.engine import checkpoint
from lockstep.engine.rank import launched
from lockstep.engine.restore import write_model
from lockstep.errors import RunFailed
from lockstep.parameters import read

LOG = "closing.log"


def main(index: int, run_path: str, parent_pid: int) -> None:
    """From the newest checkpoint that verifies."""
    run = Run(Path(run_path))
    with launched(run, index, run.logs / LOG, parent_pid):
        found, passed_over = checkpoint.newest(run.checkpoints)
        if found is None:
            raise RunFailed("; ".join(["there is no checkpoint to make the model of", *passed_over]))
        write_model(run, read(run.parameters, []), found.tensors(), found.step)
