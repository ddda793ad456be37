"""torch's DistributedDataParallel on gloo: gradients are all-reduced in buckets while backward goes on.

Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

import contextlib
import gc
from functools import partial
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lockstep.errors import RunFailed
from lockstep.strategies._joining import join
from lockstep.strategies._module_state import ModuleState
from lockstep.strategies.base import Batch, Group, Strategy, clock

MB, MIB = 1e6, 2**20  # bytes: of ``bucket_mb``, and of what torch calls bucket_cap_mb
SETTLING_PASSES = 2  # DDP rebuilds its buckets at the second forward, from the order seen in the first


class Ddp(Strategy):
    """Every rank holds the whole model and sees its slice of each global batch.

    ``bucket_mb`` counts 1 MB as 1,000,000 bytes. ``find_unused_parameters``: in each step the ranks look for
    parameters that their passes did not use, and agree on who used which. null: if one is left out
    in a pass that is made before training.
    """

    def __init__(
        self,
        group: Group,
        *,
        bucket_mb: Annotated[float, Field(gt=0, le=4096)] = 25.0,
        find_unused_parameters: bool | None = None,
    ) -> None:
        super().__init__(group)
        self.bucket_mb = bucket_mb
        self._wanted = find_unused_parameters
        self.find_unused = bool(find_unused_parameters)
        self._ready = 0.0
        self._used: set[str] = set()  # by the latest backward pass
        self._trained: set[str] = set()

    @property
    def gradient_scale(self) -> float:
        """DDP divides by the number of ranks."""
        return float(self.group.world_size)

    def place(self, module: nn.Module) -> nn.Module:
        """Join the ranks and wrap the module; rank 0's weights go to all."""
        join(self.group, next(module.parameters()).device)
        self.module = module
        self._wrap()
        gradient_bytes = 0
        for name, parameter in self._named_parameters():
            self._trained.add(name)
            gradient_bytes += parameter.numel() * parameter.element_size()
            parameter.register_hook(partial(self._note_gradient, name))  # type: ignore[no-untyped-call]
        ranks = self.group.world_size
        # gloo's all-reduce moves the least that any can (TCP headers aside); its counters are not exposed.
        self.wire_bytes = round(2 * (ranks - 1) / ranks * gradient_bytes)
        return self.model

    def _wrap(self) -> None:
        self.model = nn.Identity()
        gc.collect()  # a wrapper that was there takes its hooks off
        device = next(self.module.parameters()).device
        self.model = DistributedDataParallel(
            self.module,
            device_ids=None if device.type == "cpu" else [device.index],
            bucket_cap_mb=self.bucket_mb * MB / MIB,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.find_unused,
        )

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """No all-reduce in this backward pass."""
        no_sync: contextlib.AbstractContextManager[object] = self.model.no_sync()  # type: ignore[operator]
        return no_sync

    def _note_gradient(self, name: str, _: Tensor) -> None:
        self._ready = clock()
        self._used.add(name)

    def settle(self, batch: Batch) -> None:
        """Discard some passes, so that buckets and with them the order of sums stand before step 1.

        Otherwise a resumed run, whose first step uses the initial buckets, would part from the uninterrupted
        one in the last bits at three ranks and more. Where unused parameters are looked for, DDP keeps those buckets.
        """
        initial = ModuleState(self.module)
        if self._wanted is None:
            self.find_unused = bool(self.observed.unused) or self._leaves_out(batch)
            if self.find_unused:
                self._wrap()
        for _ in range(0 if self.find_unused else SETTLING_PASSES):
            super().forward_backward(batch)
            self.model.zero_grad(set_to_none=True)
        initial.restore()

    def _leaves_out(self, batch: Batch) -> bool:
        """Whether some rank's first pass leaves a parameter unused."""
        with self.accumulating():
            super().forward_backward(batch)
        left_out = torch.tensor([float(any(p.grad is None for _, p in self._named_parameters()))])
        self.module.zero_grad(set_to_none=True)
        return bool(self.total(left_out))

    def backward(self, loss: Tensor) -> None:
        """The all-reduce runs inside; ``sync_seconds`` is what is left of it after the last gradient."""
        self._used.clear()
        super().backward(loss)
        self.sync_seconds = clock() - self._ready
        awaited = self.model.require_backward_grad_sync and not self.find_unused
        if awaited and (left_out := self._trained - self._used):
            raise RunFailed(
                f"step {self.draws[1] + 1}: rank {self.group.rank} did not use {min(left_out)}, whose gradient the "
                "others wait for; set distributed.strategy.find_unused_parameters to true, or distributed.strategy "
                "to allreduce"
            )

    def describe(self) -> dict[str, Any]:
        """Whether it has to look for unused parameters, and the most bytes of a bucket."""
        return {"find_unused_parameters": self.find_unused, "bucket_bytes": self.model.bucket_bytes_cap}

    def total(self, values: Tensor) -> Tensor:
        """Summed by one all-reduce."""
        dist.all_reduce(values)
        return values

    def close(self) -> None:
        """Drop the wrapper before the group: with it alive, leaving can abort or hang (seen with gloo)."""
        self.model = nn.Identity()
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()
