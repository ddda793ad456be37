"""Joining torch's process group, with no time limit of the backend's own.

A limit that the backend counts goes on while this process is stopped, so a pause longer than it would end the run.
Whoever joins has a limit that counts running time: the launcher for strategies, and ``transports.gloo`` for messages.
"""

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lockstep.transports.base import Group

NO_LIMIT = timedelta(days=3650)  # the backends ask for a number


def store_of(group: Group) -> Any:
    """The file in which the ranks find each other, as torch's Store (which its type hints leave out)."""
    store = dist.FileStore(os.fsencode(group.rendezvous), group.world_size)  # type: ignore[attr-defined, arg-type]
    store.set_timeout(NO_LIMIT)
    return store


def join_group(group: Group, backend: str, store: Any) -> None:
    """Connect all ranks. Waits for them without a limit."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = "lo"  # loopback listeners only
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")  # it takes a pause of 8 minutes for a hang
    dist.init_process_group(
        backend, store=store, rank=group.rank, world_size=group.world_size, timeout=NO_LIMIT
    )
