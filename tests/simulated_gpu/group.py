"""The simulated GPUs' stand-in for NCCL: gloo, over copies in the host's memory.

Like NCCL it takes tensors of its device only, so what would be handed to the wrong one of the two is noticed.
"""

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Backend as Registry

Backend = torch._C._distributed_c10d.Backend
COLLECTIVES = (
    "broadcast", "allreduce", "allreduce_coalesced", "reduce", "allgather", "gather", "scatter", "reduce_scatter",
    "alltoall", "barrier",
    # As torch calls them since 2.12, and before.
    "all_gather_single", "all_gather_single_coalesced", "reduce_scatter_single", "reduce_scatter_single_coalesced",
    "all_to_all_single",
    "_allgather_base", "allgather_into_tensor_coalesced", "_reduce_scatter_base", "reduce_scatter_tensor_coalesced",
    "alltoall_base",
)  # fmt: skip


class Staged(Backend):
    """One rank. Every collective is finished when it returns."""

    def __init__(self, gloo, device):
        super().__init__(gloo.rank(), gloo.size())
        self.gloo, self.device = gloo, device

    def getBackendName(self):
        return "staged"

    def _host(self, value, pairs):
        if isinstance(value, torch.Tensor):
            assert value.device.type == self.device, (
                f"a tensor on {value.device} was given to the GPUs' collectives"
            )
            pairs.append((value, value.detach().cpu()))
            return pairs[-1][1]
        return [self._host(each, pairs) for each in value] if isinstance(value, list | tuple) else value

    def _run(self, name, arguments):
        pairs = []
        work = getattr(self.gloo, name)(*(self._host(each, pairs) for each in arguments))
        work.wait()
        with torch.no_grad():
            for there, here in pairs:
                there.copy_(here)
        done = torch.futures.Future()
        first = arguments[0]
        done.set_result(first if isinstance(first, list) else [first])
        return torch._C._distributed_c10d._create_work_from_future(done)


def _collective(name):
    return lambda self, *arguments: self._run(name, arguments)


for _name in COLLECTIVES:
    setattr(Staged, _name, _collective(_name))


def register(device: str) -> str:
    """What to give to init_process_group."""

    def create(store, rank, size, timeout):
        return Staged(
            dist.ProcessGroupGloo(dist.PrefixStore("staged", store), rank, size, timeout=timeout), device
        )

    Registry.register_backend("staged", create, devices=[device])
    return f"cpu:gloo,{device}:staged"
