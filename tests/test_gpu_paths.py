"""Ranks on a device whose memory is not the host's, which every machine with a compiler can simulate.

What is shown: no strategy mixes the two, and the training is that of the processor. Not shown: NCCL, and speed.
"""

import shutil
from pathlib import Path

import pytest

from lockstep.files import read_json
from lockstep.launchers import client
from lockstep.orchestration import plan
from simulated_gpu.build import build
from training import final_state, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def gpu_server(tmp_path_factory):
    """A fork server whose ranks have a simulated GPU."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SIMULATED_GPU", str(build(tmp_path_factory.mktemp("device"))))
    patch.setattr(client, "RANK_MODULES", (*client.RANK_MODULES, "simulated_gpu.ranks"))
    patch.setattr(plan, "gpus", lambda: 8)
    with client.Server() as started:
        started.prepare("forkserver", Path(__file__).parent)
        yield started
    patch.undo()


STRATEGIES = {
    "single": ("distributed.world_size=1",),
    "ddp": (),
    "fsdp": (),
    "fsdp, hybrid": ("distributed.strategy={name: fsdp, sharding: hybrid}", "distributed.world_size=4"),
    "fsdp, offload": ("distributed.strategy={name: fsdp, cpu_offload: true}",),
    "tensor": (),
    "tensor and fsdp": ("distributed.strategy={name: tensor, data_parallel: 2}", "distributed.world_size=4"),
    "naive": (),
    "allreduce": ("distributed.strategy={name: allreduce, bucket_mb: 0.001}",),
    "allreduce, invariant": ("distributed.strategy={name: allreduce, reduction: invariant}",),
    "allreduce, int8": ("distributed.strategy={name: allreduce, compressor: int8}",),
    "parameter_server": (),
    "local_sgd": ("distributed.strategy={name: local_sgd, every: 3, outer: nesterov}",),
    "pipeline": (),
    "zero bubble": (
        "distributed.strategy={name: pipeline, schedule: zero_bubble_v}",
        "model.hidden_sizes=[16, 16, 16]",
    ),
}


def furthest(run, reference):
    """How far the tensors of two runs' last checkpoints are apart at most."""
    found, wanted = final_state(run), final_state(reference)
    assert found.keys() == wanted.keys()
    return max(float(abs(found[name] - wanted[name]).max()) for name in wanted)


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_on_a_gpu_is_that_of_the_processor(gpu_server, server, tmp_path, name):
    strategy = () if "strategy" in str(STRATEGIES[name]) else (f"distributed.strategy={name}",)
    words = ("distributed.world_size=2", *strategy, *STRATEGIES[name])
    on_gpu = train(gpu_server, tmp_path, *words, "distributed.device=cuda")
    assert read_json(on_gpu.plan)["device"] == "cuda"
    assert furthest(on_gpu, train(server, tmp_path, *words)) < 1e-9
