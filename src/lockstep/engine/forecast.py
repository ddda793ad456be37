"""How much memory a rank will need, found out in a process of its own before any rank is started.

Weights, gradients and optimizer state follow from the model and the strategy. What the passes need beside them is
measured: one micro-batch goes forward and backward, on fake tensors where model or batch are large, and on real ones
where that is cheaper than loading what fakes need (3 s of imports).
"""

import contextlib
import json
import os
import signal
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lockstep import plugins
from lockstep.catalog.run import Run
from lockstep.engine import lazy_dynamo, observation, rehearsal
from lockstep.engine.activations import drop_activations
from lockstep.engine.batches import Batches
from lockstep.engine.features import open_splits
from lockstep.engine.judging import rows_of_a_pass
from lockstep.engine.precision import PRECISIONS
from lockstep.engine.rank import make_module
from lockstep.files import read_json
from lockstep.linux import die_with_parent
from lockstep.parameters import Parameters, read
from lockstep.strategies._loss import summed_loss
from lockstep.strategies._memory import predicted
from lockstep.strategies._passes import Passes
from lockstep.strategies.base import Batch, Shard, Strategy

LARGE_BYTES = 64e6  # of weights, or of the batch: above it the passes are made with fakes


def main(index: int, folder: str, order: dict[str, Any], parent_pid: int) -> None:
    """Leave the forecast as JSON; whatever a model does wrong here, its ranks will say better."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends this process
    lazy_dynamo.install()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        seen = forecast(Run(Path(order["run"])))
    except BaseException as error:
        seen = {"absent": f"{type(error).__name__}: {error}"[:1000]}
    (Path(folder) / f"rank-{index}.json").write_text(json.dumps(seen), encoding="utf-8")
    os._exit(0)


def forecast(run: Run) -> dict[str, Any]:
    """Bytes of each rank by kind, ``activations`` being all that forward and backward need beside the others."""
    own = private_bytes()
    parameters, plan = read(run.parameters, []), read_json(run.plan)
    # Weights from a file are the same number of bytes.
    model = parameters.model.model_copy(update={"weights": None})
    parameters = parameters.model_copy(update={"model": model})
    torch.set_num_threads(plan["threads_per_rank"])
    with on_meta():
        module = make_module(run, parameters)
    strategy: type[Strategy] = plugins.load("strategies", parameters.distributed.strategy.name)
    ranks, training, options = [], parameters.training, parameters.distributed.strategy.options
    in_pieces = rows_of_a_pass(parameters) * plan["world_size"] < training.global_batch_size
    gathered = strategy.gathered(module, options, plan["world_size"], in_pieces)
    for rank in range(plan["world_size"]):
        held = strategy.share(module, options, plan["world_size"], rank)
        memory = predicted(
            module, held, training.optimizer.name, training.optimizer.options, training.ema_decay is not None
        )
        ranks.append(memory.record() | ({} if strategy.updates_weights else {"optimizer": 0}))
    passes, how = of_passes(run, parameters, plan, module)
    observed = observed_model(run, plan)
    found: dict[str, Any] = {
        "ranks": [rank | {"gathered": gathered, "activations": passes, "process": own} for rank in ranks],
        "activations_measured_on": how,
        "observed": observed,
    }
    if plan["device"] == "cuda":
        # This process is the only one so far that has opened the GPUs, and it ends before the ranks do.
        found["device_free_bytes"] = [torch.cuda.mem_get_info(rank)[0] for rank in range(plan["world_size"])]
    return found


def observed_model(run: Run, plan: dict[str, Any]) -> dict[str, Any]:
    """What the model is seen to do, for the plan; a model that fails here fails in its ranks, with better words."""
    parameters = read(run.parameters, [])
    splits = open_splits(run.data, ("train",), parameters, PRECISIONS[parameters.training.precision])
    shard = Shard(0, 1, plan["world_size"])
    batches = Batches(*splits["train"], parameters.seed, parameters.training.global_batch_size, shard)
    with on_meta():
        size = sum(tensor.nbytes for tensor in make_module(run, parameters).state_dict().values())
    if size > observation.LARGEST_BYTES:
        return {"absent": f"the weights take {size:,} bytes"}
    try:
        seen, reference = observation.observe(make_module(run, parameters), batches, parameters)
    except Exception as error:  # whatever a model of the user's own raises
        return {"absent": f"{type(error).__name__}: {error}"[:1000]}
    rehearsal.keep(run, reference)
    return seen.record()


def on_meta() -> contextlib.AbstractContextManager[object]:
    """Parameters without memory: shapes and types only."""
    return torch.device("meta")


def of_passes(
    run: Run, parameters: Parameters, plan: dict[str, Any], meta: torch.nn.Module
) -> tuple[int, str]:
    """Peak bytes of a micro-batch's passes, beyond weights, inputs and finished gradients; and made with what."""
    precision = PRECISIONS[parameters.training.precision]
    splits = open_splits(run.data, ("train",), parameters, precision)
    ranks = plan["world_size"]
    shard = Shard(0, 1, ranks)
    batch = Batches(*splits["train"], parameters.seed, parameters.training.global_batch_size, shard)(0)
    batch = batch.micro_batches(parameters.training.micro_batch_size)[0]
    weights = sum(parameter.nbytes for parameter in meta.parameters())
    if max(weights, batch.features.nbytes) <= LARGE_BYTES:
        return passes_of(lambda: make_module(run, parameters), parameters, batch), "tensors"
    from torch._subclasses.fake_tensor import FakeTensorMode

    torch.set_default_dtype(precision)  # as no module of fakes can be converted
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = Batch(
            mode.from_tensor(batch.features),
            mode.from_tensor(batch.labels),
            batch.weight,
            batch.global_samples,
        )
        return passes_of(lambda: make_module(run, parameters), parameters, fakes), "fakes"


def passes_of(make: Callable[[], torch.nn.Module], parameters: Parameters, batch: Batch) -> int:
    """Forward and backward of a batch, every allocation counted."""
    module = make()
    if parameters.training.activation_checkpointing:
        drop_activations(module)
    passes = Passes()
    passes.choose(parameters.training.precision, None)
    counted = Allocations([*module.parameters(), *module.buffers(), batch.features, batch.labels])
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(counted.leave_gradient_out)  # type: ignore[no-untyped-call]
    with counted:
        with passes.autocast():
            logits = module(batch.features)
        loss = summed_loss(passes.full_precision(logits), batch.labels) / batch.global_samples
        loss.backward()  # type: ignore[no-untyped-call]
    return counted.peak


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make, for as long as they live."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key).atexit = False

    def leave_gradient_out(self, parameter: Tensor) -> None:
        """A finished gradient is forecast by itself: from here on it counts no more."""
        if parameter.grad is not None:
            self._gone(parameter.grad.untyped_storage()._cdata)

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def private_bytes() -> int:
    """What this process holds by itself, and does not share with the server that it was forked from."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1]) * 1024
    return total
