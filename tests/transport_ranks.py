"""What the ranks of the tests of transports do: threads for `queue`, processes of the fork server for the others."""

import hashlib
import importlib
import json
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lockstep import plugins
from lockstep.collectives import execute
from lockstep.collectives.schedule import PAIRS, chunk_bounds, make
from lockstep.collectives.topology import Topology
from lockstep.errors import LockstepError
from lockstep.linux import die_with_parent
from lockstep.strategies.base import Group
from lockstep.transports import _waiting
from lockstep.transports.base import Label, Transport, TransportError

# Loaded here, since parsing source in several threads at once can fail in Python 3.11.
CLASSES = {name: plugins.load("transports", name) for name in plugins.names("transports")}
DTYPES = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-10}


def opened(
    name: str, rank: int, ranks: int, folder: Path, seconds: float = 20.0, **options: Any
) -> Transport:
    """A rank's end of a transport."""
    return CLASSES[name](Group(rank, ranks, folder / "rendezvous", seconds), **options)


def in_threads(ranks: int, work: Callable[[int], Any]) -> list[Any]:
    """What each rank returns, or the error that ended it."""
    results: list[Any] = [None] * ranks

    def one(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except LockstepError as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    return results


def main(index: int, folder: str, job: str, options: dict[str, Any], parent_pid: int) -> None:
    """One process: what the job returns, or the error that it ends with, is left in a file."""
    die_with_parent(parent_pid)
    torch.set_num_threads(1)
    place = Path(folder)
    try:
        result: Any = getattr(importlib.import_module(__name__), job)(index, place, **options)
    except TransportError as error:
        result = described(error)
    except BaseException:
        (place / f"failed-{index}").write_text(traceback.format_exc())
        os._exit(1)
    (place / f"result-{index}").write_text(json.dumps(result))
    os._exit(0)


def described(error: TransportError) -> dict[str, Any]:
    """What a test wants to know of an error."""
    return {"message": str(error), "peer": error.peer, "field": error.field, "cause": error.cause}


def part(rank: int, elements: int, dtype: torch.dtype) -> torch.Tensor:
    """What a rank contributes: the same whoever computes it."""
    generator = torch.Generator().manual_seed(1000 * rank + elements)
    return torch.randn(elements, generator=generator, dtype=torch.float64).to(dtype)


def all_sums(rank: int, folder: Path, transport: str, ranks: int) -> list[str]:
    """Every schedule, size and type, against the plain sum; digests of the results, which all ranks share."""
    ours = opened(transport, rank, ranks, folder)
    digests = []
    for algorithm, collectives in PAIRS.items():
        for collective in collectives:
            for dtype, tolerance in DTYPES.items():
                for elements in sorted({1, max(ranks - 1, 1), 997}):
                    digests.append(
                        one_sum(ours, collective, algorithm, getattr(torch, dtype), elements, tolerance)
                    )
    if ranks > 2:
        groups = Topology(ranks, 2)
        for collective in PAIRS["hierarchical"]:
            for elements in (1, 997):
                digests.append(
                    one_sum(ours, collective, "hierarchical", torch.float64, elements, 1e-10, groups)
                )
    big = one_sum(
        ours, "all_reduce", "ring", torch.float32, 500_009, 1e-4
    )  # more than a slot or a socket holds
    big += one_sum(ours, "all_reduce", "direct", torch.float32, 700_001, 1e-4)
    ours.close()
    return [*digests, big]


def one_sum(
    ours: Transport,
    collective: str,
    algorithm: str,
    dtype: torch.dtype,
    elements: int,
    tolerance: float,
    topology: Topology | None = None,
) -> str:
    """Run it and check it; the digest of what every rank must have alike, else nothing."""
    rank, ranks = ours.rank, ours.size
    schedule = make(collective, algorithm, rank, ranks, topology)
    parts = [part(other, elements, dtype) for other in range(ranks)]
    total = sum((each.double() for each in parts), torch.zeros(elements, dtype=torch.float64))
    buffer = parts[rank].clone()
    bounds = chunk_bounds(elements, schedule.chunks)
    compared = slice(0, elements)
    if collective == "reduce_scatter":
        compared = slice(*bounds[rank])
    elif collective == "all_gather":
        total = torch.cat([parts[owner].double()[start:stop] for owner, (start, stop) in enumerate(bounds)])
    elif collective == "broadcast":
        total = parts[0].double()
    execute.run(schedule, ours, buffer)
    found = buffer.double()[compared]
    what = (collective, algorithm, dtype, elements, rank, ranks)
    assert torch.allclose(found, total[compared], rtol=tolerance, atol=tolerance * ranks), what
    shared = buffer if collective != "reduce_scatter" else buffer[:0]
    return hashlib.sha256(shared.view(torch.uint8).numpy().tobytes()).hexdigest()


def bytes_sent(
    rank: int, folder: Path, transport: str, ranks: int, elements: int, per_machine: int
) -> dict[str, int]:
    """What each algorithm put on the wire."""
    ours = opened(transport, rank, ranks, folder)
    counts = {}
    for algorithm in PAIRS:
        before = ours.wire_bytes
        schedule = make("all_reduce", algorithm, rank, ranks, Topology(ranks, per_machine))
        execute.run(schedule, ours, part(rank, elements, torch.float32))
        counts[algorithm] = ours.wire_bytes - before
    ours.close()
    return counts


def stalls(rank: int, folder: Path, transport: str, seconds: float) -> Any:
    """Rank 1 does not send; rank 0 waits for it."""
    ours = opened(transport, rank, 2, folder, seconds)
    ours.label = Label("gather", 3, 17)
    if rank == 0:
        try:
            ours.recv(torch.empty(5), 1, 2).wait()
        except TransportError as error:
            (folder / "seen").touch()
            return described(error)
    while not (folder / "seen").exists():
        time.sleep(0.01)
    return None


def answers_when_told(rank: int, folder: Path, transport: str, seconds: float) -> Any:
    """Rank 0 waits for a message, which rank 1 sends once a file says so."""
    ours = opened(transport, rank, 2, folder, seconds)
    (folder / f"here-{rank}").touch()
    into = torch.empty(5)
    if rank == 0:
        ours.recv(into, 1, 2).wait()
        (folder / "seen").touch()
    else:
        while not (folder / "go").exists():
            time.sleep(0.01)
        ours.send(torch.arange(5.0), 0, 2).wait()
        while not (folder / "seen").exists():
            time.sleep(0.01)
    ours.close()
    return into.tolist()


def limits_of_torch(rank: int, folder: Path) -> list[float]:
    """The time limits of the process groups that a strategy on a mesh uses, in seconds."""
    from lockstep.strategies._joining import join, mesh_of_ranks

    device = torch.device("cpu")
    join(Group(rank, 2, folder / "rendezvous", 1.0), device)
    mesh = mesh_of_ranks("cpu", (2, 1), ("data", "tensor"))
    groups = [torch.distributed.group.WORLD, *mesh.get_all_groups()]
    return [group._get_backend(device).options._timeout.total_seconds() for group in groups]


def longest_sleep(rank: int, folder: Path, ranks: int, rounds: int, looks: bool) -> float:
    """Collectives and messages of all kinds with delays at random; the seconds of the longest of them.

    Nobody looks by itself for a minute, so that whoever is not woken is seen to sleep.
    """
    _waiting.SLICE_SECONDS = 60.0
    ours = opened("shm", rank, ranks, folder, 100.0, slot_kb=4)
    ours._waiting._looks_first = looks
    draw = random.Random(rank)
    small, large = torch.zeros(16), torch.zeros(100_003)  # which is more than all slots of a pair
    ways = [
        (make("all_reduce", name, rank, ranks), buffer)
        for name in ("direct", "ring")
        for buffer in (small, large)
    ]
    weights = [100, 1, 30, 1]
    order = random.Random(0)  # the same on all ranks
    longest = 0.0
    for number in range(rounds):
        until = time.perf_counter() + draw.random() * 0.0001
        while time.perf_counter() < until:
            pass
        began = time.monotonic()
        if number % 50:
            schedule, buffer = order.choices(ways, weights)[0]
            execute.run(schedule, ours, buffer)
        else:
            swapped = in_threads(ranks - 1, lambda other: _swap(ours, (rank + 1 + other) % ranks))
            assert swapped == [True] * (ranks - 1), swapped
        longest = max(longest, time.monotonic() - began)
    ours.close()
    return longest


def _swap(ours: Transport, peer: int) -> bool:
    """Large messages in both directions; whether they came whole."""
    out, into = torch.full((60_000,), float(ours.rank)), torch.empty(60_000)
    for _ in range(3):
        sent = ours.send(out, peer)
        ours.recv(into, peer).wait()
        sent.wait()
    return bool((into == float(peer)).all())


def dies(rank: int, folder: Path, transport: str, ranks: int, dead: int, algorithm: str) -> Any:
    """One rank is killed in the middle of things; the others go on reducing until they notice."""
    ours = opened(transport, rank, ranks, folder, 30.0)
    began = time.monotonic()
    buffer = torch.zeros(200_003)
    schedule = make("all_reduce", algorithm, rank, ranks)
    for step in range(1_000_000):
        ours.label = Label("all_reduce", 4, step)
        if step == 20:
            began = time.monotonic()
            if rank == dead:
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            execute.run(schedule, ours, buffer)
        except TransportError as error:
            seen = described(error) | {"seconds": time.monotonic() - began, "step": step}
            (folder / f"result-{rank}").write_text(json.dumps(seen))
            os._exit(0)  # as a rank of a run does: without a goodbye
    return None


def waits_for_ever(rank: int, folder: Path, transport: str, ranks: int, only: list[int]) -> None:
    """Join, if this rank is one that does, and stay; a file says that it has got that far."""
    (folder / f"here-{rank}").touch()
    if rank in only:
        ours = opened(transport, rank, ranks, folder, 60.0)
        execute.run(make("all_reduce", "direct", rank, ranks), ours, torch.zeros(100_000))
        (folder / f"joined-{rank}").touch()
    time.sleep(60)


def mismatched(
    rank: int, folder: Path, transport: str, change: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Rank 0 sends one message, rank 1 expects another."""
    ours = opened(transport, rank, 2, folder, 5.0, **options)
    expected = {"operation": "ring", "bucket": 1, "step": 2, "tag": 3, "dtype": "float32", "elements": 6}
    mine = expected | (change if rank == 0 else {})
    ours.label = Label(mine["operation"], mine["bucket"], mine["step"])
    tensor = torch.ones(mine["elements"], dtype=getattr(torch, mine["dtype"]))
    if rank == 0:
        ours.send(tensor, 1, mine["tag"]).wait()
        ours.send(torch.zeros(1000), 1, 0).wait()  # so that what is missing is never the reason
        while not (folder / "seen").exists():
            time.sleep(0.01)
        return None
    try:
        ours.recv(tensor, 0, mine["tag"]).wait()
    finally:
        (folder / "seen").touch()
    return None
