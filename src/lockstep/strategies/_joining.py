"""Joining torch's process group, for strategies that leave their collectives to torch."""

import contextlib
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lockstep.errors import UsageError
from lockstep.strategies.base import Group, open_transport
from lockstep.transports._process_group import NO_LIMIT, join_group, store_of
from lockstep.transports.base import Transport

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # what is summed on the host still goes over gloo


def join(group: Group, device: torch.device) -> None:
    """gloo between processors, NCCL between GPUs. The launcher notices a hang, and says who hangs."""
    join_group(group, BACKENDS[device.type], store_of(group))


def mesh_of_ranks(device: str, shape: tuple[int, ...], names: tuple[str, ...]) -> DeviceMesh:
    """All ranks in rows and columns. Groups of some ranks get torch's own limit when they are made."""
    mesh = init_device_mesh(device, shape, mesh_dim_names=names)
    for subgroup in mesh.get_all_groups():
        dist.set_timeout(NO_LIMIT, subgroup)
    return mesh


@torch.no_grad()
def broadcast_from_rank_0(module: nn.Module) -> None:
    """Rank 0's weights and buffers for all, of any type and layout."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not tensor.numel():
            continue
        values = tensor.detach()
        plain = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        sent = plain.contiguous()
        dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, 0)
        if sent.data_ptr() != values.data_ptr():
            values.copy_(torch.view_as_complex(sent) if values.is_complex() else sent)


def for_sums(group: Group) -> Transport | None:
    """A transport for sums of a few numbers: microseconds, where gloo takes half a millisecond.

    Shared memory, in pieces so small that they cost nothing; None on a processor or system that it is not for.
    """
    place = group.rendezvous.with_name(f"{group.rendezvous.name}-sums")
    with contextlib.suppress(UsageError):
        return open_transport(replace(group, rendezvous=place), {"name": "shm", "piece_kb": 4, "slot_kb": 4})
    return None
