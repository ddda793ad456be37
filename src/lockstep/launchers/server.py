"""The fork server: the only process of a run that imports torch; every rank is forked from it in milliseconds.

Started first (`python -m lockstep.launchers.server`), it imports torch while the pipeline prepares the data.
It speaks one JSON object a line over a socket. In: `prepare`, `start` (target, arguments, count, method), `kill`.
Out: `ready`, `started` with pids, `exit` for each death it reaps, `failed` where it cannot serve.
It dies with the pipeline's process, and the ranks die with it, by the kernel's parent-death signal.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from lockstep.linux import die_with_parent

BASE = ("torch", "torch.multiprocessing")
FOR_FORKED_RANKS = ("torch.distributed", "torch.nn.parallel", "torch.optim")


def main() -> None:
    """Serve one client until it leaves."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they often go to the whole process group; the client decides
    die_with_parent(parent)
    with socket.socket(fileno=descriptor) as channel:
        try:
            serve(channel)
        except ImportError as error:  # a package is missing or broken: nothing that a traceback would explain
            send(channel, event="failed", message=f"{type(error).__name__}: {error}", explained=True)
            sys.exit(1)
        except Exception as error:
            send(channel, event="failed", message=f"{type(error).__name__}: {error}", explained=False)
            raise


def send(channel: socket.socket, **message: Any) -> None:
    """One message to the client."""
    channel.sendall((json.dumps(message) + "\n").encode())


class Orders:
    """The client's lines, one at a time, whether they come one by one or several at once."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._buffer = b""

    @property
    def waiting(self) -> bool:
        """Whether a line is here already, so that the socket need not be readable."""
        return b"\n" in self._buffer

    def read(self) -> dict[str, Any] | None:
        """The next order; None where the client is gone."""
        while not self.waiting:
            data = self.channel.recv(1 << 16)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order


def serve(channel: socket.socket) -> None:
    """Import, then obey."""
    began = time.monotonic()
    gc.disable()  # nothing that imports make is garbage; looking for it takes a tenth of their time
    for name in BASE:
        importlib.import_module(name)
    orders = Orders(channel)
    order = orders.read()
    if order is None:
        return
    assert order["order"] == "prepare", order
    sys.path[:] = order["sys_path"]
    if order["method"] == "forkserver":
        for name in (*FOR_FORKED_RANKS, *order["modules"]):
            importlib.import_module(name)
    else:
        tie_spawned_processes()
    gc.freeze()  # and the ranks need not look again at what they share with this process
    gc.enable()
    send(channel, event="ready", seconds=time.monotonic() - began)
    while (order := orders.read()) is not None:
        if order["order"] == "start":  # a kill may come when the group has just ended by itself
            run_group(orders, order)


def run_group(orders: Orders, order: dict[str, Any]) -> None:
    """Start the processes of one order and report each death, until all have ended or the client leaves."""
    import torch.multiprocessing

    channel, number = orders.channel, order["group"]
    module, name = order["target"].split(":")
    target: Callable[..., None] = getattr(importlib.import_module(module), name)
    # Forking is safe here, as in multiprocessing's own forkserver: this process has no other threads.
    method = "fork" if order["method"] == "forkserver" else "spawn"
    if method == "fork":
        for name in order["modules"]:  # once here, and not in each of the processes
            importlib.import_module(name)
        gc.freeze()
    arguments = (*order["arguments"], os.getpid())
    group = torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        target, args=arguments, nprocs=order["count"], join=False, start_method=method
    )
    processes = group.processes
    send(channel, event="started", group=number, pids=[process.pid for process in processes])
    alive = {process.sentinel: index for index, process in enumerate(processes)}
    while alive:
        for ready in [channel] if orders.waiting else wait([channel, *alive], timeout=0.5):
            if ready is channel:
                if orders.read() is None:
                    return
                for process in processes:  # the only order there is while a group runs
                    process.kill()
            else:
                index = alive.pop(ready)
                processes[index].join()
                code = processes[index].exitcode
                send(channel, event="exit", group=number, index=index, code=code, time=time.monotonic())
    send(channel, event="all_ended", group=number)


def tie_spawned_processes() -> None:
    """Have spawned processes die with this one from their first line on, and not only once they have imported torch."""
    from multiprocessing import spawn

    original = spawn.get_command_line

    def tied(**options: Any) -> list[str]:
        command = original(**options)
        place = command.index("-c") + 1
        command[place] = (
            f"from lockstep.linux import die_with_parent; die_with_parent({os.getpid()}); {command[place]}"
        )
        return command

    spawn.get_command_line = tied


if __name__ == "__main__":
    main()
