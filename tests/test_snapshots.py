"""Snapshots of gradients: what the hooks saw on each rank, and what the reduction made of it."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from lockstep.files import read_json_lines
from training import bits, train

ASKED = ("distributed.strategy=allreduce", "distributed.world_size=3")


def seen(run, step, rank):
    folder = run.path / "snapshots" / f"step-{step:08d}"
    return read_json_lines(folder / f"rank-{rank}.jsonl"), load_file(folder / f"rank-{rank}.safetensors")


@pytest.mark.parametrize("reduction", ["fast", "invariant"])
def test_snapshots_tell_each_ranks_gradients_and_their_sum_for_the_steps_asked_for(
    server, tmp_path, reduction
):
    run = train(
        server, tmp_path, *ASKED, f"distributed.strategy.reduction={reduction}",
        "distributed.strategy.snapshot_steps=[2, 9]", "distributed.strategy.snapshot_tensors=true",
        "distributed.strategy.bucket_mb=0.0005",
    )  # fmt: skip
    assert sorted(path.name for path in (run.path / "snapshots").iterdir()) == [
        "step-00000002",
        "step-00000009",
    ]
    for step in (2, 9):
        sums, reduced, shards = {}, [], set()
        for rank in range(3):
            lines, tensors = seen(run, step, rank)
            assert [line["order"] for line in lines] == list(range(len(lines)))
            for line in lines:
                shard = "" if line["shard"] is None else f"{line['shard']}/"
                value = tensors.pop(f"{line['stage']}/{shard}{line['parameter']}")
                assert line["sha256"] == hashlib.sha256(value.tobytes()).hexdigest()
                assert line["norm"] == pytest.approx(np.linalg.norm(value), rel=1e-12)
                assert (line["shape"], line["dtype"]) == ([*value.shape], "float64")
                if line["stage"] == "local":
                    sums[line["parameter"]] = sums.get(line["parameter"], 0) + value
                    shards.add(line["shard"])
                else:
                    reduced.append((line["parameter"], line["sha256"], value))
            assert not tensors
            first = lines[0]["parameter"]
            assert first.startswith("3."), f"the last layer's gradients are ready first, not {first}"
        assert shards == ({None} if reduction == "fast" else set(range(8)))
        assert len({(name, digest) for name, digest, _ in reduced}) == len(sums) == 4, (
            "one result on all ranks"
        )
        for name, _, value in reduced:
            assert abs(value - sums[name]).max() < 1e-15


def test_snapshots_change_no_bit_of_the_training(server, tmp_path):
    plain = train(server, tmp_path, *ASKED, "training.precision=fp32")
    looked_at = train(
        server, tmp_path, *ASKED, "training.precision=fp32", "distributed.strategy.snapshot_steps=[1, 2, 3]"
    )
    assert bits(plain) == bits(looked_at)
    assert not (plain.path / "snapshots").exists()
    assert not list((looked_at.path / "snapshots").rglob("*.safetensors")), (
        "the tensors are kept by option only"
    )


@pytest.mark.parametrize("reduction", ["fast", "invariant"])
def test_a_gradient_that_comes_in_parts_has_one_line_which_tells_all_of_it(server, tmp_path, reduction):
    run = train(
        server, tmp_path, "distributed.strategy=allreduce", "distributed.world_size=2",
        f"distributed.strategy.reduction={reduction}", "model=own_models:reentrant", "training.epochs=1",
        "distributed.strategy.snapshot_steps=[1]", "distributed.strategy.snapshot_tensors=true",
    )  # fmt: skip
    sums, reduced = {}, {}
    for rank in range(2):
        lines, tensors = seen(run, 1, rank)
        assert [line["order"] for line in lines] == list(range(len(lines)))
        assert len(lines) == len(tensors), "one line for each gradient"
        for line in lines:
            shard = "" if line["shard"] is None else f"{line['shard']}/"
            value = tensors[f"{line['stage']}/{shard}{line['parameter']}"]
            assert line["sha256"] == hashlib.sha256(value.tobytes()).hexdigest()
            if line["stage"] == "local":
                sums[line["parameter"]] = sums.get(line["parameter"], 0) + value
            else:
                reduced[line["parameter"]] = value
    assert "block.weight" in reduced
    for name, value in reduced.items():
        assert abs(value - sums[name]).max() < 1e-15
