"""distributed_model_checkpoint.pt where the ranks could not write it: assembled by a process of its own, if it may."""

from typing import Any

from lockstep.catalog.run import Run
from lockstep.files import read_json
from lockstep.launchers.supervise import Watched, supervise
from lockstep.orchestration.session import Session
from lockstep.parameters import Parameters

LOG = "closing.log"  # as engine.closing writes it


def write_model(session: Session, parameters: Parameters) -> None:
    """Write the file unless rank 0 has, or its tensors are more than ``checkpoint.closing_limit_gb``."""
    run, options = session.run, parameters.distributed
    if run.model.exists():
        return
    size, limit = newest_bytes(run), parameters.checkpoint.closing_limit_gb
    if size > limit * 1e9:
        session.warn(
            f"{run.model.name} is left out: its tensors are {size / 1e9:.1f} GB, and checkpoint.closing_limit_gb is "
            f"{limit:g}. The last checkpoint holds them; lockstep export {run.typed} writes plain weights"
        )
        return
    server = session.ranks_server(options.start_method)
    watched = Watched(run, server, [run.logs / LOG], None, options.timeout_seconds)
    server.start("lockstep.engine.closing:main", [str(run.path)], 1)
    supervise(watched)


def newest_bytes(run: Run) -> int:
    """The size of all tensors of the newest checkpoint, as its manifest tells; 0 where there is none."""
    paths = sorted(run.checkpoints.glob("step-*"))
    if not paths:
        return 0
    files: dict[str, Any] = read_json(paths[-1] / "manifest.json")["files"]
    return sum(int(entry["bytes"]) for name, entry in files.items() if name.endswith(".safetensors"))
