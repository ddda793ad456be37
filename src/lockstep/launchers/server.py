"""The fork server: the only process of a run that imports torch; every rank is forked from it in milliseconds.

Started first (`python -m lockstep.launchers.server`), it imports torch while the pipeline prepares the data.
It speaks one JSON object a line over a socket. In: `start` (target, arguments, count, method), `end`.
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
        except Exception as error:
            send(channel, event="failed", message=f"{type(error).__name__}: {error}")
            raise


def send(channel: socket.socket, **message: Any) -> None:
    """One message to the client."""
    channel.sendall((json.dumps(message) + "\n").encode())


def serve(channel: socket.socket) -> None:
    """Import, then obey."""
    began = time.monotonic()
    gc.disable()  # nothing that imports make is garbage; looking for it takes a tenth of their time
    for name in BASE:
        importlib.import_module(name)
    reader = channel.makefile("r")
    order = json.loads(reader.readline() or "{}")
    if order.get("order") != "prepare":
        return
    sys.path[:] = order["sys_path"]
    if order["method"] == "forkserver":
        for name in (*FOR_FORKED_RANKS, *order["modules"]):
            importlib.import_module(name)
    gc.freeze()  # and the ranks need not look again at what they share with this process
    gc.enable()
    send(channel, event="ready", seconds=time.monotonic() - began)
    for line in reader:
        order = json.loads(line)
        if order["order"] == "end":
            return
        run_group(channel, order)


def run_group(channel: socket.socket, order: dict[str, Any]) -> None:
    """Start the processes of one order and report each death, until all have ended or the client leaves."""
    import torch.multiprocessing

    module, name = order["target"].split(":")
    target: Callable[..., None] = getattr(importlib.import_module(module), name)
    # Forking is safe here, as in multiprocessing's own forkserver: this process has no other threads.
    method = "fork" if order["method"] == "forkserver" else "spawn"
    arguments = (*order["arguments"], os.getpid())
    group = torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        target, args=arguments, nprocs=order["count"], join=False, start_method=method
    )
    processes = group.processes
    send(channel, event="started", pids=[process.pid for process in processes])
    alive = {process.sentinel: index for index, process in enumerate(processes)}
    while alive:
        for ready in wait([channel, *alive], timeout=0.5):
            if ready is channel:
                if not obey(channel, processes):
                    return
            else:
                index = alive.pop(ready)
                processes[index].join()
                send(
                    channel, event="exit", index=index, code=processes[index].exitcode, time=time.monotonic()
                )
    send(channel, event="all_ended")


def obey(channel: socket.socket, processes: list[Any]) -> bool:
    """Carry out an order that comes while a group runs: end the processes. False where the client is gone."""
    text = channel.recv(4096)
    if not text:
        return False
    for process in processes:
        if process.is_alive():
            process.kill()
    return True


if __name__ == "__main__":
    main()
