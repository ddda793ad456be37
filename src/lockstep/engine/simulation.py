"""One process of `lockstep collectives run`: synthetic least squares, and each step held against the serial one.

Every rank has a shard of the rows, computes its part of the gradient, and takes part in the reduction. Beside it
every rank also computes all the rows by itself, in one piece, which is the serial result.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.collectives.topology import Topology
from lockstep.engine import lazy_dynamo
from lockstep.linux import die_with_parent
from lockstep.strategies._asking import Servers
from lockstep.strategies._serving import Serving
from lockstep.strategies._slices import cut
from lockstep.strategies.base import Group, clock, key, open_transport
from lockstep.transports.base import Label, Transport

NOISE = 0.1  # of the targets


def main(index: int, folder: str, order: dict[str, Any], parent_pid: int) -> None:
    """Take part as process ``index``; what was seen is left in a file."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends all
    lazy_dynamo.install()
    place = Path(folder)
    try:
        seen = work(index, place, order)
    except BaseException as error:
        (place / f"error-{index}").write_text(
            f"{type(error).__name__}: {error}", encoding="utf-8", errors="backslashreplace"
        )
        os._exit(1)  # at once: peers may be waiting
    (place / f"rank-{index}.json").write_text(json.dumps(seen), encoding="utf-8")
    os._exit(0)


def work(index: int, folder: Path, order: dict[str, Any]) -> list[dict[str, Any]]:
    """A rank's steps; a server's are none of its own."""
    torch.set_num_threads(1)
    ranks, served = order["world_size"], order["algorithm"] == "parameter_server"
    group = Group(index, ranks + served, folder / "rendezvous", order["timeout_seconds"])
    transport = open_transport(group, order["transport"])
    if index >= ranks:
        serve(transport, ranks, order["parameter_dim"])
        seen = []
    else:
        problem = Problem(order)
        way = Served(transport, problem, ranks) if served else Reduced(transport, problem, order)
        seen = [take_step(step, way, problem, transport) for step in range(1, order["num_steps"] + 1)]
        way.leave()
    transport.close()
    return seen


class Problem:
    """Least squares: ``rows`` is (ranks * shard_size, parameter_dim), ``targets`` (ranks * shard_size,), in fp64."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.shard, dimension = order["shard_size"], order["parameter_dim"]
        count = self.shard * order["world_size"]
        generator = torch.Generator().manual_seed(key(order["seed"], "least squares"))
        self.rows = torch.randn(count, dimension, dtype=torch.float64, generator=generator)
        truth = torch.randn(dimension, dtype=torch.float64, generator=generator)
        noise = torch.randn(count, dtype=torch.float64, generator=generator)
        self.targets = self.rows @ truth + NOISE * noise
        # The largest rate at which no direction of the loss overshoots.
        self.learning_rate = count / float(torch.linalg.matrix_norm(self.rows, 2)) ** 2
        self.serial = torch.zeros(dimension, dtype=torch.float64)

    def loss(self) -> float:
        """The mean of the squared errors over all rows, halved, at the serial weights."""
        return float((self.rows @ self.serial - self.targets).square().mean()) / 2

    def part(self, rank: int, weights: Tensor) -> Tensor:
        """A rank's part of the gradient of the mean over all rows: (parameter_dim,)."""
        own = slice(rank * self.shard, (rank + 1) * self.shard)
        return self.rows[own].T @ (self.rows[own] @ weights - self.targets[own]) / len(self.rows)

    def serial_step(self) -> None:
        """The same step by one process, in one piece."""
        gradient = self.rows.T @ (self.rows @ self.serial - self.targets) / len(self.rows)
        self.serial -= self.learning_rate * gradient


class Reduced:
    """Every rank holds the weights; the gradient is all-reduced by a schedule."""

    def __init__(self, transport: Transport, problem: Problem, order: dict[str, Any]) -> None:
        self.transport, self.problem = transport, problem
        topology = Topology(transport.size, order["ranks_per_machine"] or transport.size)
        self.schedule = make("all_reduce", order["algorithm"], transport.rank, transport.size, topology)
        self.weights = torch.zeros_like(problem.serial)

    def step(self, number: int) -> None:
        """One update."""
        self.transport.label = Label("all_reduce", 0, number)
        gradient = self.problem.part(self.transport.rank, self.weights)
        execute.run(self.schedule, self.transport, gradient)
        self.weights -= self.problem.learning_rate * gradient

    def leave(self) -> None:
        """Nobody has to be told."""


class Served:
    """A server holds the weights, sums the gradients and updates; the code is the strategy's own."""

    def __init__(self, transport: Transport, problem: Problem, workers: int) -> None:
        self.rank, self.problem = transport.rank, problem
        self.weights = torch.zeros_like(problem.serial)
        slices = cut([("weights", nn.Parameter(self.weights))], 1)
        self.servers = Servers(transport, workers, slices, self.weights)

    def step(self, number: int) -> None:
        """One update."""
        self.servers.sum(number, {"weights": self.problem.part(self.rank, self.weights)})
        self.servers.apply(number, self.problem.learning_rate, 1.0)

    def leave(self) -> None:
        """Let the server end."""
        self.servers.leave()


class _Nobody:
    def progress(self, least: int, most: int) -> None:
        """Nobody is told."""

    def update(self, **fields: Any) -> None:
        """Nobody is told."""


def serve(transport: Transport, workers: int, dimension: int) -> None:
    """The server's side: gradient descent from zero."""
    weights = torch.zeros(dimension, dtype=torch.float64)
    own = cut([("weights", nn.Parameter(weights))], 1)[0]
    serving = Serving(transport, workers, own, weights, 0, _Nobody())
    serving.optimizer = torch.optim.SGD(serving.parameters, lr=1.0)
    serving.serve()


def take_step(number: int, way: "Reduced | Served", problem: Problem, transport: Transport) -> dict[str, Any]:
    """A step together, the same step alone, and how far they are apart."""
    began, sent = clock(), transport.wire_bytes
    way.step(number)
    seconds, wire_bytes = clock() - began, transport.wire_bytes - sent
    problem.serial_step()
    return {
        "step": number,
        "loss": problem.loss(),
        "difference": float((way.weights - problem.serial).abs().max()),
        "weights": int(way.weights.view(torch.int64).sum()),
        "seconds": seconds,
        "wire_bytes": wire_bytes,
    }
