"""Checkpoints that every rank writes its own slices of: whole or absent, read piece by piece, by any strategy."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import rank_pids, wait_until
from lockstep.catalog.manifest import verify_folder
from lockstep.catalog.run import Run
from lockstep.engine import checkpoint, sharded
from lockstep.engine.contents import Contents, header
from lockstep.engine.sharded import Ranks
from lockstep.errors import CorruptRecord, RunFailed
from lockstep.files import read_json
from lockstep.strategies._state import Slice
from test_fsdp import SINGLE, fsdp
from training import bits, train

META = {"epochs_done": 1, "steps_per_epoch": 10, "best": None}


class Meeting:
    """Threads in the place of ranks: sums as a collective makes them, and none leaves before all have entered."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks, timeout=20)
        self.lock = threading.Lock()
        self.parts: list[torch.Tensor] = []
        self.sums = 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.parts.append(values.clone())
        if self.barrier.wait() == 0:
            self.sum = torch.stack(self.parts).sum(0)
            self.parts = []
            self.sums += 1
        self.barrier.wait()
        values.copy_(self.sum)
        self.barrier.wait()
        return values


def save_together(folder: Path, slices, meta, before=None, after=None) -> list[BaseException | Path]:
    """A checkpoint by as many threads as there are sets of slices; what each returned or raised."""
    meeting, outcomes = Meeting(len(slices)), [None] * len(slices)

    def one(rank: int) -> None:
        try:
            outcomes[rank] = sharded.save(folder, slices[rank], meta, Ranks(rank, len(slices), meeting.total))
        except BaseException as error:
            outcomes[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(slices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def cut(tensor: torch.Tensor, ranks: int, dimension: int = 0) -> list[Slice]:
    """As torch.chunk does it: the last ones are smaller, or empty."""
    found = []
    size = -(-tensor.shape[dimension] // ranks)
    for rank in range(ranks):
        start = min(rank * size, tensor.shape[dimension])
        stop = min(start + size, tensor.shape[dimension])
        offsets = [0] * tensor.dim()
        offsets[dimension] = start
        found.append(
            Slice(tensor.narrow(dimension, start, stop - start), tuple(tensor.shape), tuple(offsets))
        )
    return found


def state(ranks: int, seed: int = 0):
    """Tensors of every awkward kind, and each rank's slices of them."""
    generator = torch.Generator().manual_seed(seed)
    whole = {
        "model": {
            "wide": torch.randn(7, 5, generator=generator),
            "columns": torch.randn(3, 6, generator=generator),
            "short": torch.randn(1, generator=generator),
            "half": torch.randn(9, generator=generator).to(torch.bfloat16),
            "count": torch.tensor(3),
            "none": torch.empty(0, 4),
        },
        "optimizer": {"wide/exp_avg": torch.randn(7, 5, generator=generator), "wide/step": torch.tensor(2.0)},
    }
    slices = [{"model": {}, "optimizer": {}} for _ in range(ranks)]
    for part, tensors in whole.items():
        for name, tensor in tensors.items():
            if not tensor.dim() or not tensor.numel():
                slices[0][part][name] = Slice.whole(tensor)
                continue
            for rank, one in enumerate(cut(tensor, ranks, 1 if name == "columns" else 0)):
                slices[rank][part][name] = one
    return whole, slices


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_the_ranks_saved_is_what_is_loaded_whole_and_in_any_blocks(tmp_path, ranks):
    whole, slices = state(ranks)
    outcomes = save_together(tmp_path, slices, META | {"step": 10})
    assert outcomes == [tmp_path / "step-00000010"] * ranks
    found, passed_over = checkpoint.newest(tmp_path)
    assert passed_over == [] and found.step == 10
    loaded = found.tensors()
    for part, tensors in whole.items():
        assert loaded[part].keys() == tensors.keys()
        assert all(torch.equal(loaded[part][name], tensors[name]) for name in tensors)
        assert all(loaded[part][name].dtype == tensors[name].dtype for name in tensors)
    names = {path.name for path in found.path.iterdir()}
    assert {f"model-{rank + 1:05}-of-{ranks:05}.safetensors" for rank in range(ranks)} < names
    with contextlib.closing(found.contents()) as contents:
        for name, tensor in whole["model"].items():
            for parts in (1, 2, 3, 5):
                for dimension in range(tensor.dim()):
                    for one in cut(tensor, parts, dimension):
                        block = contents.read("model", name, one.offsets, one.data.shape)
                        assert torch.equal(block, one.data) and block.dtype == tensor.dtype


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_block_of_any_cutting_is_found(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    saved = data.draw(st.tuples(st.integers(1, 5), st.integers(0, len(shape) - 1)))
    folder = tmp_path_factory.mktemp("c")
    for rank, one in enumerate(cut(tensor, *saved)):
        own = {"t": one}
        save_file(
            {"t": one.data.contiguous()}, folder / f"model-{rank + 1:05}-of-00005.safetensors", header(own)
        )
    starts = [data.draw(st.integers(0, size)) for size in shape]
    sizes = [data.draw(st.integers(0, size - start)) for size, start in zip(shape, starts, strict=True)]
    block = tensor[tuple(slice(a, a + b) for a, b in zip(starts, sizes, strict=True))]
    with contextlib.closing(Contents(folder)) as contents:
        assert torch.equal(contents.read("model", "t", starts, sizes), block)
        assert torch.equal(contents.whole()["model"]["t"], tensor)


PLACES = [
    {"shape": [4, 3], "offsets": [3, 0]},
    {"shape": [4], "offsets": [0]},
    {"shape": [8, 3], "offsets": [0, 0]},
    {"shape": [4, 3], "offsets": [-1, 0]},
    {"offsets": [0, 0]},
    7,
]


@pytest.mark.parametrize("place", PLACES)
def test_slices_that_do_not_make_a_whole_are_refused(tmp_path, place):
    file = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"t": torch.zeros(4, 3)}, file, {"slices": json.dumps({"t": place})})
    with pytest.raises(CorruptRecord, match="model"):
        Contents(tmp_path)


def test_a_block_is_read_without_the_rest_of_the_file(tmp_path):
    rows = 64
    save_file({"t": torch.ones(rows, 1 << 18)}, tmp_path / "model.safetensors")  # 64 rows of 1 MiB
    os.sync()
    with contextlib.closing(Contents(tmp_path)) as contents:
        before = resident(tmp_path / "model.safetensors")
        block = contents.read("model", "t", (5, 0), (2, 1 << 18))
        after = resident(tmp_path / "model.safetensors")
        assert float(block.sum()) == 2 << 18
    assert 2 << 20 <= after - before <= 8 << 20


def resident(file: Path) -> int:
    """The bytes of a mapped file that this process has touched."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_every_flipped_byte_of_any_rank_is_found(tmp_path):
    save_together(tmp_path, state(2)[1], META | {"step": 10})
    save_together(tmp_path, state(2, 1)[1], META | {"step": 20})
    for path in sorted((tmp_path / "step-00000020").iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            found, passed_over = checkpoint.newest(tmp_path)
            assert found.step == 10 and "00000020" in passed_over[0]
        path.write_bytes(content)
    assert checkpoint.newest(tmp_path)[0].step == 20


def test_one_that_stands_is_kept_and_a_damaged_one_is_replaced_by_all_ranks(tmp_path):
    save_together(tmp_path, state(2)[1], META | {"step": 10})
    before = {path.name: path.stat().st_ino for path in (tmp_path / "step-00000010").iterdir()}
    save_together(tmp_path, state(2, 9)[1], META | {"step": 10})
    assert {path.name: path.stat().st_ino for path in (tmp_path / "step-00000010").iterdir()} == before
    (tmp_path / "step-00000010" / "model-00002-of-00002.safetensors").unlink()
    save_together(tmp_path, state(2, 9)[1], META | {"step": 10})
    assert torch.equal(
        checkpoint.newest(tmp_path)[0].tensors()["model"]["wide"], state(2, 9)[0]["model"]["wide"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_rank_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save_together(tmp_path, state(3)[1], META | {"step": 10})
    write = sharded._write

    def failing(folder, slices, ranks):
        if ranks.rank == 1:
            raise OSError(28, "No space left on device")
        return write(folder, slices, ranks)

    monkeypatch.setattr(sharded, "_write", failing)
    outcomes = save_together(tmp_path, state(3, 1)[1], META | {"step": 20})
    assert isinstance(outcomes[1], RunFailed) and "disk is full" in str(outcomes[1])
    assert checkpoint.newest(tmp_path)[0].step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_file_that_does_not_read_back_as_written_is_not_committed(tmp_path, monkeypatch):
    digest = sharded.digest_of_file

    def damaging(path, durable=False):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        return digest(path, durable)

    monkeypatch.setattr(sharded, "digest_of_file", damaging)
    outcomes = save_together(tmp_path, state(2)[1], META | {"step": 10})
    assert any(isinstance(each, CorruptRecord) for each in outcomes)
    assert checkpoint.newest(tmp_path) == (None, [])


SAVING = """
import os, sys, torch
import torch.distributed as dist
from pathlib import Path
from lockstep.engine import checkpoint, sharded
from lockstep.strategies._state import Slice
folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), 2
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), world), rank=rank, world_size=world)
def total(values):
    dist.all_reduce(values)
    return values
ranks = sharded.Ranks(rank, world, total)
meta = {"epochs_done": 1, "steps_per_epoch": 10, "best": None}
for step in range(1, 100000):
    own = {"model": {"weight": Slice(torch.full((40_000,), float(step)), (80_000,), (40_000 * rank,))}}
    sharded.save(folder / "c", own, meta | {"step": step}, ranks)
    if rank == 0:
        checkpoint.prune(folder / "c", 2, None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_kill_9_of_any_rank_at_any_moment_leaves_only_whole_checkpoints(tmp_path, victim):
    (tmp_path / "c").mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path), str(rank)], stderr=subprocess.DEVNULL)
        for rank in range(2)
    ]
    try:
        wait_until(lambda: len(list((tmp_path / "c").glob("step-*"))) > 1)
        time.sleep(0.1 + 0.037 * victim)  # wherever that is
        processes[victim].send_signal(signal.SIGKILL)
        processes[victim].wait()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for path in sorted((tmp_path / "c").glob("step-*")):
        assert verify_folder(path) == []
        found = checkpoint.open_verified(path)
        assert found.tensors()["model"]["weight"].unique().tolist() == [found.step]
    checkpoint.sweep(tmp_path / "c")
    assert all(path.name.startswith("step-") for path in (tmp_path / "c").iterdir())


def test_no_rank_holds_more_than_its_share_when_it_saves(server, tmp_path):
    """Tensors in the rank's memory: its share of weights and moments, and not a gathered block beside it."""
    report = tmp_path / "held"
    run = train(
        server,
        tmp_path,
        f"model={{name: sharded_models:watched, report: {report}}}",
        "training.epochs=1",
        "data.input_size=64",
        *fsdp(4),
    )
    parts = checkpoint.newest(run.checkpoints)[0].tensors().values()
    sizes = [tensor.nbytes for part in parts for tensor in part.values()]
    for rank in range(4):
        told = [json.loads(line) for line in Path(f"{report}-{rank}").read_text().splitlines()]
        assert sum(each["own"] for each in told) / len(told) == pytest.approx(sum(sizes) / 4, rel=0.02)
        # A gathered model would add another 1.3 shares; samples and buffers add a third of one.
        assert all(each["held"] < 1.6 * each["own"] for each in told)


def test_the_closing_model_is_put_together_from_the_slices_below_a_size(server, tmp_path):
    run = train(server, tmp_path, *fsdp(2), "training.epochs=1")
    alone = train(server, tmp_path, *SINGLE, "training.epochs=1")
    mine, theirs = (torch.load(each.model, weights_only=True) for each in (run, alone))
    assert mine["step"] == theirs["step"] and mine["model"].keys() == theirs["model"].keys()
    assert all((mine["model"][name] - theirs["model"][name]).abs().max() < 1e-10 for name in mine["model"])
    assert mine["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    large = train(server, tmp_path, *fsdp(2), "training.epochs=1", "checkpoint.closing_limit_gb=0.000001")
    assert not large.model.exists()
    assert any(
        "closing_limit_gb is 1e-06" in json.loads(line).get("message", "")
        for line in large.events.read_text().splitlines()
    )


def test_a_checkpoint_of_slices_says_who_made_it_and_only_whole_files_count(server, tmp_path):
    run = train(server, tmp_path, *fsdp(2), "training.epochs=1")
    last = max(run.checkpoints.glob("step-*"))
    assert read_json(last / "state.json")["made_by"]["world_size"] == 2
    halves = [load_file(last / f"model-{rank}-of-00002.safetensors") for rank in ("00001", "00002")]
    assert [half["1.weight"].shape for half in halves] == [(8, 12), (8, 12)]
    (last / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in checkpoint.newest(run.checkpoints)[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_of_the_real_command_and_a_resume_end_in_the_same_bits(command, victim):
    job = ("data=synthetic", "data.num_samples=3001", "data.input_size=32", "training.global_batch_size=64")
    long = (*job, "training.epochs=8", "checkpoint.every_steps=5", *fsdp(3))
    command.run("--run-id", "whole", *long)
    process = command.start_and_wait_for_step("r", 60, *long)
    os.kill(rank_pids(command.catalog, "r")[victim], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    run, whole = (Run((command.catalog / name).resolve()) for name in ("r", "whole"))
    for path in run.checkpoints.glob("step-*"):
        assert verify_folder(path) == []
    command.run("--resume", "r")
    assert bits(run) == bits(whole)
    assert verify_folder(run.path) == []
    assert not list(run.checkpoints.glob(".tmp-*"))
    assert (
        torch.load(run.model, weights_only=True)["step"] == torch.load(whole.model, weights_only=True)["step"]
    )
