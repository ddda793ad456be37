"""A server process of a strategy that has some: it holds a part of the weights and no data."""

import os
import time
from typing import Any

import torch

from lockstep import plugins
from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.engine.device import HOST
from lockstep.engine.fitting import refuse_what_no_strategy_trains
from lockstep.engine.log import say, say_start
from lockstep.engine.metrics import Metrics, peak_rss_bytes
from lockstep.engine.optimizers import make_optimizer
from lockstep.engine.rank import launched, make_module
from lockstep.engine.restore import fitting, starting_point, state_of
from lockstep.files import read_json
from lockstep.parameters import Parameters, read
from lockstep.strategies._some import Some
from lockstep.strategies.base import Group


def main(index: int, run: Run, attempt: int, parent_pid: int) -> None:
    """Serve until every worker has left."""
    plan = read_json(run.plan)
    number = index - plan["world_size"]
    log = run.logs / f"server-{number}.log"
    with launched(run, index, log, parent_pid), Board(run.live / "board", index) as board:
        torch.set_num_threads(plan["threads_per_rank"])
        serve(run, read(run.parameters, []), plan, index, attempt, board)


class Watcher:
    """Tells the board how far a server is, and writes a line for every update."""

    def __init__(self, board: Board, metrics: Metrics, decides: bool) -> None:
        self._board, self._metrics, self._decides = board, metrics, decides

    def progress(self, least: int, most: int) -> None:
        """A sign of life; and where the workers do not wait for each other, the answer to a request to stop."""
        if self._decides:
            self._board.stop_beyond(most)
        self._board.write("step", least)
        self._board.enter("serving")

    def update(self, **fields: Any) -> None:
        """A line."""
        self._metrics.write("update", **fields)


def serve(
    run: Run, parameters: Parameters, plan: dict[str, Any], index: int, attempt: int, board: Board
) -> None:
    """Build the model for its weights, take the last checkpoint's, keep a slice of them, and answer."""
    options, ranks = parameters.distributed, plan["world_size"]
    number = index - ranks
    name = f"server-{number}.jsonl" if attempt == 1 else f"server-{number}.attempt-{attempt}.jsonl"
    metrics = Metrics(run.metrics / name)
    group = Group(index, ranks, run.live / f"rendezvous-{attempt}", options.timeout_seconds)
    strategy = plugins.load("strategies", options.strategy.name)
    module = make_module(run, parameters)
    refuse_what_no_strategy_trains(module)  # in the words of the workers, who may be later
    found, step, _ = starting_point(run, plan["steps_per_epoch"])
    state = state_of(found, parameters) if found else None
    if found and state:
        with fitting(found):
            module.load_state_dict(state["model"])
    decides = number == 0 and options.strategy.options.get("mode") != "sync"
    watcher = Watcher(board, metrics, decides)
    serving = strategy.serve(group, module, watcher, step, options.strategy.options)
    del module
    serving.optimizer = make_optimizer(parameters.training, Some(serving.named()))
    if state:
        serving.load(state["optimizer"])
    del state
    board.write("step", step)
    board.enter("serving")
    began = time.monotonic()
    metrics.write(
        "start", attempt=attempt, server=number, pid=os.getpid(), step=step, bytes=serving.weights.nbytes
    )
    say_start(f"server {number}, of {serving.weights.nbytes:,} bytes of weights,", attempt, step, HOST)
    serving.serve()
    metrics.write(
        "end",
        version=serving.version,
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time(),
        peak_rss_bytes=peak_rss_bytes(),
        wire_bytes=serving.transport.wire_bytes,
    )
    say(f"ended with version {serving.version} of its weights")
    metrics.close()
    board.enter("done")
    serving.transport.close()
