"""What anybody would write by hand: a plain loop of DDP (or FSDP2) over tensors in memory, and nothing else.

The yardstick of `main_job.py` and `strategies.py`. Ranks are forked from multiprocessing's own fork server, which has
imported torch already; no metrics, no checkpoints, no validation, no record. Prints one JSON object.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

BEGAN = time.monotonic()  # one clock for all processes of a machine
PRELOADED = ["torch", "torch.distributed", "torch.nn.parallel", "torch.optim", "torch._dynamo"]


def synthetic(samples: int, inputs: int, classes: int) -> Any:
    """Gaussian inputs labelled by a hidden linear teacher, the same in every rank."""
    import torch

    generator = torch.Generator().manual_seed(42)
    features = torch.randn(samples, inputs, generator=generator)
    teacher = torch.randn(inputs, classes, generator=generator)
    return features, (features @ teacher).argmax(dim=1)


def rank_main(rank: int, options: argparse.Namespace, rendezvous: str, answer: Connection) -> None:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = options.world_size
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    features, labels = synthetic(options.train_samples, options.inputs, options.classes)
    torch.manual_seed(42)
    hidden = options.hidden
    layers = [nn.Linear(options.inputs, hidden), nn.ReLU()]
    for _ in range(options.layers - 1):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(hidden, options.classes))
    model = sharded(module, ranks) if options.fsdp else DistributedDataParallel(module)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, fused=options.fused or None)
    loss_of = nn.CrossEntropyLoss()
    global_batch = options.batch_size * ranks
    steps = samples = first_samples = 0
    times = []
    first_step = time.monotonic()
    began = cpu_began = 0.0
    for epoch in range(options.epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(labels), global_batch):
            times.append(time.monotonic())
            whole = order[start : start + global_batch]
            rows = whole[len(whole) * rank // ranks : len(whole) * (rank + 1) // ranks]
            loss = loss_of(model(features.index_select(0, rows)), labels.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            samples += len(whole)
            if steps == 1:
                first_samples = len(whole)
                dist.barrier()
                began, cpu_began = time.monotonic(), time.process_time()
    cpu_seconds = torch.tensor(time.process_time() - cpu_began)
    dist.barrier()
    ended = time.monotonic()
    dist.all_reduce(cpu_seconds)
    if rank == 0:
        answer.send(
            {
                "steps": steps,
                "samples_per_second": (samples - first_samples) / (ended - began),
                "loop_seconds": ended - began,
                "step_ms": 1000 * median(b - a for a, b in itertools.pairwise(times)),
                "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                "step_cpu_ms": 1000 * float(cpu_seconds) / ranks / (steps - 1),
                "first_step_seconds": first_step - options.began,
            }
        )
    del module, model, optimizer, loss
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def sharded(module: Any, ranks: int) -> Any:
    """FSDP2 as its documentation has it: each layer, then the whole."""
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (ranks,))
    for layer in module:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-samples", type=int, default=16_000)
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="of each rank")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2, help="hidden ones")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--fused", action="store_true", help="Adam's fused kernel, which ours uses")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 in the place of DDP")
    options = parser.parse_args()
    options.began = BEGAN
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *(["torch.distributed.fsdp"] if options.fsdp else [])])
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        processes = [
            context.Process(target=rank_main, args=(rank, options, rendezvous, theirs))
            for rank in range(options.world_size)
        ]
        for process in processes:
            process.start()
        theirs.close()
        result = ours.recv()
        for process in processes:
            process.join()
    result["seconds"] = time.monotonic() - BEGAN
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
