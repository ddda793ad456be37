"""One rank of the benchmark of collectives."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lockstep import plugins
from lockstep.bench.collectives import COPIES, GLOO
from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.linux import die_with_parent
from lockstep.strategies.base import Group
from lockstep.transports.base import Transport

_ROUND_BYTES = 16 << 20  # a round repeats small buffers until it has moved about that much,
_MOST, _LEAST = 300, 3  # within these
_SHORT, _LONG = 1, 1 << 20  # elements of the messages that a link is measured with


@dataclass
class Candidate:
    """One way to reduce a buffer, and what it took."""

    name: str
    reduce: Callable[[Tensor], object]
    transport: Transport | None = None
    algorithm: str | None = None  # where it is a schedule's messages, which the cost model knows
    seconds: list[float] = field(default_factory=list)
    digest: list[str] = field(default_factory=list)
    wrong: bool = False
    wire_bytes: int = 0  # of one reduction

    def check(self, rank: int, ranks: int, elements: int) -> None:
        """Compare with the sum in double precision, twice: the bits must repeat."""
        parts = [
            torch.randn(elements, generator=torch.Generator().manual_seed(other)) for other in range(ranks)
        ]
        expected = _sum(parts)
        for _ in range(2):
            buffer = parts[rank].clone()
            before = self.transport.wire_bytes if self.transport else 0
            self.reduce(buffer)
            self.wire_bytes = self.transport.wire_bytes - before if self.transport else 0
            self.wrong |= not torch.allclose(buffer.double(), expected, rtol=1e-5, atol=1e-5 * ranks)
            self.digest.append(hashlib.sha256(buffer.numpy().data).hexdigest())

    def time(self, buffer: Tensor, repeats: int) -> None:
        """Seconds of one reduction, over some in a row that all ranks begin together."""
        dist.barrier()
        began = time.perf_counter()
        for _ in range(repeats):
            self.reduce(buffer)
        self.seconds.append((time.perf_counter() - began) / repeats)


def main(index: int, folder: str, order: dict[str, Any], parent_pid: int) -> None:
    """Measure as rank ``index``; what was seen is left in a file."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    place = Path(folder)
    try:
        seen = work(index, place, order)
    except BaseException as error:
        (place / f"error-{index}").write_text(
            f"{type(error).__name__}: {error}", encoding="utf-8", errors="backslashreplace"
        )
        os._exit(1)
    (place / f"rank-{index}.json").write_text(json.dumps(seen), encoding="utf-8")
    os._exit(0)


def work(rank: int, folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Every size, every candidate, in turn."""
    torch.set_num_threads(1)
    ranks, limit = order["ranks"], order["timeout_seconds"]
    open_ = plugins.load("transports", "gloo")
    transports: dict[str, Transport] = {"gloo": open_(Group(rank, ranks, folder / "gloo", limit))}
    for name, _ in order["pairs"]:
        if name not in transports:
            group = Group(rank, ranks, folder / name, limit)
            transports[name] = plugins.load("transports", name)(group)
    links = {name: link_of(each, order["rounds"]) for name, each in transports.items() if ranks > 1}
    gamma = gamma_of(order["rounds"])
    rows = []
    for size in order["sizes"]:
        buffer = torch.zeros(size // 4)
        candidates = [Candidate(GLOO, dist.all_reduce), Candidate(COPIES, copies(rank, ranks, buffer))]
        for name, algorithm in order["pairs"]:
            candidates.append(_ours(name, algorithm, rank, ranks, transports[name]))
        for candidate in candidates:
            if candidate.name != COPIES:
                candidate.check(rank, ranks, buffer.numel())
        repeats = min(max(_ROUND_BYTES // size, _LEAST), _MOST)
        for _ in range(order["rounds"]):
            for candidate in candidates:
                candidate.time(buffer, repeats)
        rows += [_seen(candidate, size) for candidate in candidates]
    for transport in reversed(transports.values()):
        dist.barrier()
        transport.close()
    return {"torch": torch.__version__, "links": links, "gamma": gamma, "rows": rows}


def _ours(name: str, algorithm: str, rank: int, ranks: int, transport: Transport) -> Candidate:
    schedule = make("all_reduce", algorithm, rank, ranks)

    def reduce(buffer: Tensor) -> None:
        execute.run(schedule, transport, buffer)

    in_messages = algorithm != "direct" or transport.all_reduce is None
    return Candidate(f"{algorithm} on {name}", reduce, transport, algorithm if in_messages else None)


def copies(rank: int, ranks: int, like: Tensor) -> Callable[[Tensor], object]:
    """What no all-reduce through memory can do without, by all ranks at once and without any waiting.

    The buffer is copied in, the rank's own slice is summed over the ranks, and the result is copied out.
    """
    inside, peer = (
        torch.ones_like(like),
        torch.ones_like(like),
    )  # written to: untouched pages would cost nothing
    elements = like.numel()
    mine = slice(elements * rank // ranks, elements * (rank + 1) // ranks)

    def work(buffer: Tensor) -> None:
        inside.copy_(buffer)
        for _ in range(ranks - 1):
            inside[mine].add_(peer[mine])
        buffer.copy_(inside)

    return work


def link_of(transport: Transport, rounds: int) -> list[float]:
    """Alpha and beta of a transport: every rank sends to the next one and receives from the one before."""
    times: dict[int, list[float]] = {_SHORT: [], _LONG: []}
    following, before = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for elements, repeats in ((_SHORT, 100), (_LONG, 3)):
        outgoing, incoming = torch.zeros(elements), torch.zeros(elements)
        for _ in range(rounds):
            dist.barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                sending = transport.send(outgoing, following)
                transport.recv(incoming, before).wait()
                sending.wait()
            times[elements].append((time.perf_counter() - began) / repeats)
    short, long = median(times[_SHORT]), median(times[_LONG])
    return [short, max(long - short, 0.0) / (4 * (_LONG - _SHORT))]


def gamma_of(rounds: int) -> float:
    """Seconds to add a byte, by all ranks at once."""
    total, more, times = torch.zeros(_LONG), torch.ones(_LONG), []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        total.add_(more)
        times.append(time.perf_counter() - began)
    return median(times) / (4 * _LONG)


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0].double()
    for part in parts[1:]:
        total += part
    return total


def _seen(candidate: Candidate, size: int) -> dict[str, Any]:
    names = ("name", "algorithm", "seconds", "digest", "wrong", "wire_bytes")
    return {"bytes": size} | {name: getattr(candidate, name) for name in names}
