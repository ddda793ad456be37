"""Point to point on torch's own process group: the same bytes as ours, through gloo's connections.

gloo matches messages by their tag and checks nothing else, so a tag that never comes ends in a timeout here, and
a message of another length ends the process. The group's connections are loopback only.
"""

import threading
import time
from queue import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lockstep.running_time import SLICE_SECONDS, RunningTime
from lockstep.transports._process_group import NO_LIMIT, join_group, store_of
from lockstep.transports.base import Done, Group, Label, Pending, Transport, TransportError

_POLL_SECONDS = 0.002


class Gloo(Transport):
    """``isend`` and ``irecv``. Where the process has a group already, it is used."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._own = not dist.is_initialized()
        self._of_thread = threading.local()
        if self._own:
            store = store_of(group)
            self._await_all(store)
            join_group(group, "gloo", store)

    def _await_all(self, store: Any) -> None:
        """Until every rank has said that it is here: joining itself has no limit."""
        store.set(f"here/{self.rank}", "")
        waited = RunningTime()
        for rank in range(self.size):
            while not store.check([f"here/{rank}"]):
                if waited.seconds() > self.timeout_seconds:
                    how = f"rank {rank} did not join within {self.timeout_seconds:g} s"
                    raise TransportError(how, rank=self.rank, peer=rank, label=Label("join"), cause="hang")
                time.sleep(_POLL_SECONDS)

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """gloo's thread sends it."""
        data = _raw(tensor)
        if not data.numel():
            return Done()
        self.wire_bytes += data.numel()
        return _Work(self, dist.isend(data, to, tag=tag), to, "nothing was taken by")

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """gloo's thread receives it."""
        data = _raw(into)
        if not data.numel():
            return Done()
        return _Work(self, dist.irecv(data, source, tag=tag), source, "nothing arrived from")

    def finish(self, work: dist.Work, peer: int, label: Label, what: str) -> None:
        """Wait, and say who it was where gloo does not."""
        waiter = getattr(self._of_thread, "waiter", None)
        if waiter is None:
            waiter = self._of_thread.waiter = _Waiter()
        waiter.works.put(work)
        waited = RunningTime()
        while not waiter.done.acquire(timeout=SLICE_SECONDS):
            if waited.seconds() > self.timeout_seconds:
                del self._of_thread.waiter  # which will be done with this message at the wrong time
                raise self.timed_out(peer, label, what)
        if waiter.error is not None:
            del self._of_thread.waiter
            how = f"died, or closed its connection ({str(waiter.error).splitlines()[0]})"
            raise self.gone(peer, label, how)

    def close(self) -> None:
        """Leave the group, where this transport made it."""
        if self._own and dist.is_initialized():
            dist.destroy_process_group()


class _Waiter:
    """A thread that waits in gloo without a limit, for one thread at a time, which can then count running time.

    A wait of gloo's own that runs out closes all of its connections, so it cannot be cut into slices.
    """

    def __init__(self) -> None:
        self.works: SimpleQueue[dist.Work] = SimpleQueue()
        self.done = threading.Semaphore(0)
        self.error: RuntimeError | None = None
        threading.Thread(target=self._wait, name="gloo-wait", daemon=True).start()

    def _wait(self) -> None:
        while self.error is None:
            try:
                self.works.get().wait(NO_LIMIT)
            except RuntimeError as error:
                self.error = error
            self.done.release()


class _Work:
    """A message that gloo's thread is busy with."""

    def __init__(self, transport: Gloo, work: dist.Work | None, peer: int, what: str) -> None:
        assert work is not None
        self._transport, self._work, self._peer, self._what = transport, work, peer, what
        self._label = transport.label

    def wait(self) -> None:
        """Wait for it."""
        self._transport.finish(self._work, self._peer, self._label, self._what)


def _raw(tensor: Tensor) -> Tensor:
    """The tensor's memory as bytes: gloo does not send every type."""
    assert tensor.is_contiguous(), "contiguous tensors only"
    return tensor.detach().reshape(-1).view(torch.uint8)
