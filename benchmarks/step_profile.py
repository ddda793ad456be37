"""Where the time of a rank's step goes: the real loop, with a stopwatch around each of its parts.

`main_job.py --profile` prints it. The stopwatches cost a few per cent themselves, so the parts are to be
compared with each other, not with the figures of an unwatched run. Processor time is this thread's: it says
nothing of waiting, and changes less than the wall time when the machine is busy with something else.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LABELS = {
    "batch": "data: index and gather",
    "seeding": "data: seed of the step",
    "forward": "forward: DDP and model",
    "cross_entropy": "loss",
    "backward": "backward, with the all-reduce in it",
    "one_pass": "weighting, loss as a number, correct ones",
    "norm": "gradients' norm",
    "optimizer": "optimizer",
    "metrics": "metrics: a line",
    "fingerprints": "metrics: digests of the weights",
    "watch": "metrics: comparing digests",
    "board": "board",
    "learning_rate": "learning rate",
    "validation": "validation (per step of the run)",
    "checkpoint": "checkpoints (per step of the run)",
    "step": "the rest of the step",
}


class Stopwatches:
    """Exclusive wall and processor seconds of nested parts."""

    def __init__(self) -> None:
        self.spent = {name: [0.0, 0.0] for name in LABELS}
        self._inner: list[list[float]] = []

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent, stack = self.spent[name], self._inner

        def watched(*args: Any, **kwargs: Any) -> Any:
            inner = [0.0, 0.0]
            stack.append(inner)
            began, cpu_began = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                cpu, wall = time.thread_time() - cpu_began, time.perf_counter() - began
                stack.pop()
                spent[0] += wall - inner[0]
                spent[1] += cpu - inner[1]
                if stack:
                    stack[-1][0] += wall
                    stack[-1][1] += cpu

        return watched

    def install(self) -> None:
        """Put them around the parts of the loop, where the loop looks these up."""
        import torch
        from torch.nn.parallel import DistributedDataParallel

        from lockstep import board
        from lockstep.engine import batches, checkpoint, divergence, loop, metrics
        from lockstep.strategies.base import Strategy
        from lockstep.strategies.ddp import Ddp

        places: list[tuple[object, str, str]] = [
            (batches.Batches, "__call__", "batch"),
            (Strategy, "seed_draws", "seeding"),
            (DistributedDataParallel, "forward", "forward"),
            (torch.nn.functional, "cross_entropy", "cross_entropy"),
            (Ddp, "backward", "backward"),
            (Strategy, "one_pass", "one_pass"),
            (Strategy, "sync", "norm"),
            (Strategy, "apply", "optimizer"),
            (metrics.Metrics, "write", "metrics"),
            (loop, "fingerprints", "fingerprints"),
            (divergence.Watch, "compare", "watch"),
            (board.Board, "enter", "board"),
            (board.Board, "write", "board"),
            (board.Board, "should_stop", "board"),
            (loop, "learning_rate", "learning_rate"),
            (loop, "end_epoch", "validation"),
            (checkpoint, "save", "checkpoint"),
            (checkpoint, "prune", "checkpoint"),
            (loop, "take_step", "step"),
        ]
        for owner, attribute, name in places:
            setattr(owner, attribute, self.around(name, getattr(owner, attribute)))

    def clear(self) -> None:
        for spent in self.spent.values():
            spent[:] = [0.0, 0.0]


def prepare(folder: Path, ranks: int, epochs: int) -> None:
    """A run's folder as it stands when the ranks start, without the pipeline around it."""
    import main_job

    from lockstep import parameters
    from lockstep.board import Board
    from lockstep.catalog.run import claim
    from lockstep.files import write_json
    from lockstep.orchestration import plan
    from lockstep.orchestration.prepare import prepare as prepare_data

    run = claim(folder, "profiled")
    run.parameters.write_text(main_job.parameters(ranks, epochs), encoding="utf-8")
    wanted = parameters.read(run.parameters)
    run.live.mkdir(mode=0o700)
    prepare_data(run, wanted.data, wanted.seed, Path.cwd())
    write_json(run.plan, plan.make(run, wanted))
    Board.create(run.live / "board", ranks).close()


def watched_rank(rank: int, folder: str) -> None:
    import torch

    from lockstep.board import Board
    from lockstep.catalog.run import Run
    from lockstep.engine import lazy_dynamo
    from lockstep.engine import rank as engine_rank
    from lockstep.files import read_json
    from lockstep.parameters import read

    run = Run(Path(folder))
    lazy_dynamo.install()
    watches = Stopwatches()
    watches.install()
    restore = engine_rank.restore

    def restore_and_begin(job: Any) -> int:
        watches.clear()  # the settling passes are start-up, not steps
        return restore(job)

    engine_rank.restore = restore_and_begin
    plan = read_json(run.plan)
    torch.set_num_threads(plan["threads_per_rank"])
    with Board(run.live / "board", rank) as board:
        engine_rank.work(run, read(run.parameters), plan, rank, 1, board)
    (run.logs / f"watches-{rank}.json").write_text(
        json.dumps({"steps": plan["steps"], **watches.spent}), encoding="utf-8"
    )


def measured(ranks: int, epochs: int) -> str:
    """The table of rank 0 and of the last rank."""
    import torch.multiprocessing
    from tables import table

    with tempfile.TemporaryDirectory(prefix="lockstep-benchmark-") as folder:
        prepare(Path(folder), ranks, epochs)
        run = Path(folder) / "profiled"
        torch.multiprocessing.spawn(watched_rank, args=(str(run),), nprocs=ranks)  # type: ignore[attr-defined, no-untyped-call]
        found = {
            rank: json.loads((run / "logs" / f"watches-{rank}.json").read_text(encoding="utf-8"))
            for rank in dict.fromkeys((0, ranks - 1))
        }
    head = [cell for rank in found for cell in (f"rank {rank} wall", "processor")]
    rows = [["microseconds a step", *head]]
    totals = {rank: [0.0, 0.0] for rank in found}
    for name, label in LABELS.items():
        row = [label]
        for rank, spent in found.items():
            for kind in (0, 1):
                value = 1e6 * spent[name][kind] / spent["steps"]
                totals[rank][kind] += value
                row.append(f"{value:,.1f}")
        rows.append(row)
    rows.append(["in all", *(f"{value:,.1f}" for total in totals.values() for value in total)])
    return table(rows)
