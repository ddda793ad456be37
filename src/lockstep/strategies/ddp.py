"""torch's DistributedDataParallel on gloo: gradients are all-reduced in buckets while backward goes on.

Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020.
"""

import contextlib
import gc
from typing import Annotated

import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lockstep.strategies._joining import join
from lockstep.strategies.base import Batch, Group, Strategy, clock

SETTLING_PASSES = 2  # DDP rebuilds its buckets at the second forward, from the order seen in the first


class Ddp(Strategy):
    """Every rank holds the whole model and sees its slice of each global batch."""

    def __init__(self, group: Group, *, bucket_mb: Annotated[float, Field(gt=0, le=4096)] = 25.0) -> None:
        super().__init__(group)
        self.bucket_mb = bucket_mb
        self._ready = 0.0

    @property
    def gradient_scale(self) -> float:
        """DDP divides by the number of ranks."""
        return float(self.group.world_size)

    def place(self, module: nn.Module) -> nn.Module:
        """Join the ranks and wrap the module; rank 0's weights go to all."""
        device = next(module.parameters()).device
        join(self.group, device)
        self.module = module
        self.model = DistributedDataParallel(
            module,
            device_ids=None if device.type == "cpu" else [device.index],
            bucket_cap_mb=self.bucket_mb,
            gradient_as_bucket_view=True,
        )
        gradient_bytes = 0
        for parameter in module.parameters():
            if parameter.requires_grad:
                gradient_bytes += parameter.numel() * parameter.element_size()
                parameter.register_hook(self._note_gradient)  # type: ignore[no-untyped-call]
        ranks = self.group.world_size
        # gloo's all-reduce moves the least that any can (TCP headers aside); its counters are not exposed.
        self.wire_bytes = round(2 * (ranks - 1) / ranks * gradient_bytes)
        return self.model

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """No all-reduce in this backward pass."""
        no_sync: contextlib.AbstractContextManager[object] = self.model.no_sync()  # type: ignore[operator]
        return no_sync

    def _note_gradient(self, _: Tensor) -> None:
        self._ready = clock()

    def settle(self, batch: Batch) -> None:
        """Discard two passes, so that buckets and with them the order of sums stand before step 1.

        Otherwise a resumed run, whose first step uses the initial buckets, would part from the uninterrupted
        one in the last bits at three ranks and more.
        """
        initial = {name: value.clone() for name, value in self.module.state_dict().items()}
        for _ in range(SETTLING_PASSES):
            super().forward_backward(batch)
            self.model.zero_grad(set_to_none=True)
        self.module.load_state_dict(initial)  # statistics of batch norm, and whatever else a pass changes

    def backward(self, loss: Tensor) -> None:
        """The all-reduce runs inside; ``sync_seconds`` is what is left of it after the last gradient."""
        super().backward(loss)
        self.sync_seconds = clock() - self._ready

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
