"""Point to point on torch's own process group: the same bytes as ours, through gloo's connections.

gloo matches messages by their tag and checks nothing else, so a tag that never comes ends in a timeout here, and
a message of another length ends the process. The group's connections are loopback only.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from lockstep.transports.base import Done, Group, Label, Pending, Transport


class Gloo(Transport):
    """``isend`` and ``irecv``. Where the process has a group already, it is used."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._limit = timedelta(seconds=group.timeout_seconds)
        self._own = not dist.is_initialized()
        if self._own:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # loopback listeners only
            store = dist.FileStore(str(group.rendezvous), self.size)  # type: ignore[attr-defined]
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.size, timeout=self._limit
            )

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
        try:
            work.wait(self._limit)
        except RuntimeError as error:
            text = str(error)
            if "imed out" in text or "imeout" in text:
                raise self.timed_out(peer, label, what) from None
            raise self.gone(peer, label, f"died, or closed its connection ({text.splitlines()[0]})") from None

    def close(self) -> None:
        """Leave the group, where this transport made it."""
        if self._own and dist.is_initialized():
            dist.destroy_process_group()


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
