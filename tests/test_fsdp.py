"""fsdp: the single process's training with every rank holding a share, and the bytes that it takes."""

import itertools

import pytest

from lockstep.errors import RunFailed
from lockstep.files import read_json_lines
from marks import slow
from training import bits, largest_difference, results, train

AWKWARD = ("model=sharded_models:awkward", "training.epochs=1")


def fsdp(ranks: int, **options: object) -> tuple[str, str]:
    chosen = ", ".join(["name: fsdp", *(f"{key}: {value}" for key, value in options.items())])
    return f"distributed.strategy={{{chosen}}}", f"distributed.world_size={ranks}"


SINGLE = ("distributed.strategy=single", "distributed.world_size=1")


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    """Of the model that is hard to shard; 147 samples in batches of 20, so the last batch has 7."""
    return train(server, tmp_path_factory.mktemp("single"), *AWKWARD, *SINGLE)


def start_line(run):
    return next(line for line in read_json_lines(run.metrics_file(0, 1)) if line["kind"] == "start")


CASES = {
    "full shard on 3": (3, {}),
    "hybrid on 4": (4, {"sharding": "hybrid", "ranks_per_group": 2}),
    "gloo's own reduce-scatter, offloaded": (
        2,
        {"sharding": "shard_grad_op", "reduce_scatter": "backend", "cpu_offload": "true"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fsdp_equals_the_single_process_whatever_it_shards(server, tmp_path, reference, case):
    ranks, options = CASES[case]
    assert largest_difference(train(server, tmp_path, *AWKWARD, *fsdp(ranks, **options)), reference) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "sharding"), [*itertools.product((1, 2, 3, 4), ("full_shard", "shard_grad_op", "hybrid"))]
)
def test_every_sharding_on_one_to_four_ranks_equals_the_single_process(
    server, tmp_path, reference, ranks, sharding
):
    run = train(server, tmp_path, *AWKWARD, *fsdp(ranks, sharding=sharding, transport="shm"))
    assert largest_difference(run, reference) < 1e-10
    run = train(server, tmp_path, *AWKWARD, *fsdp(ranks, sharding=sharding, reduce_scatter="backend"))
    assert largest_difference(run, reference) < 1e-10


def test_the_global_norm_is_clipped_and_micro_batches_add_up(server, tmp_path):
    options = [
        *AWKWARD,
        "training.max_grad_norm=0.05",
        "training.optimizer=sgd",
        "training.micro_batch_size=3",
    ]
    alone = train(server, tmp_path, *options, *SINGLE)
    together = train(server, tmp_path, *options, *fsdp(2))
    assert largest_difference(alone, together) < 1e-10
    norms = [[line["grad_norm"] for line in lines(run, 0)] for run in (alone, together)]
    assert norms[1] == pytest.approx(norms[0], abs=1e-10)
    assert max(norms[0]) > 0.05


def lines(run, rank):
    return [line for line in read_json_lines(run.metrics_file(rank, 1)) if line["kind"] == "step"]


UNEVEN = ("training.global_batch_size=13", "training.epochs=2")  # 6 and 7 samples a rank, 2 in the last batch


@pytest.mark.parametrize("size", [slow(6), slow(1)])
def test_a_rank_with_fewer_micro_batches_than_others_goes_through_as_many_passes(server, tmp_path, size):
    words = (*UNEVEN, "distributed.timeout_seconds=20")
    alone = train(server, tmp_path, *words, *SINGLE)
    run = train(server, tmp_path, *words, f"training.micro_batch_size={size}", *fsdp(2))
    assert largest_difference(run, alone) < 1e-10
    samples = [
        sum(line.get("samples", 0) for line in read_json_lines(run.metrics_file(rank))) for rank in (0, 1)
    ]
    assert sum(samples) == 2 * 148  # each sample counted once


def test_blocks_are_wrapped_one_by_one_and_tied_ones_left_to_the_root(reference, server, tmp_path):
    run = train(server, tmp_path, *AWKWARD, *fsdp(2))
    told = start_line(run)["strategy"]
    assert [each["block"] for each in told["wrapped"]] == ["layers.2.0", "(root)"]
    assert set(told["left_to_root"]) == {"layers.0", "layers.1"}
    assert told["wrapped"][0]["bytes"] == 8 * (7 * 7 + 7)
    mlp = train(server, tmp_path, *fsdp(2), "training.epochs=1", "model.hidden_sizes=[16, 16]")
    assert [each["block"] for each in start_line(mlp)["strategy"]["wrapped"]] == ["1", "3", "5", "(root)"]
    assert bits(mlp) == bits(
        train(server, tmp_path, *fsdp(2), "training.epochs=1", "model.hidden_sizes=[16, 16]")
    )


@pytest.mark.parametrize(
    ("ranks", "options"), [slow(2, {}), (4, {"sharding": "hybrid", "ranks_per_group": 2})]
)
def test_the_ranks_fingerprints_add_up_to_the_whole_models_with_single_numbers_counted_once(
    reference, server, tmp_path, ranks, options
):
    run = train(server, tmp_path, *AWKWARD, *fsdp(ranks, **options))
    whole = start_line(reference)["parameter_digests"]
    assert {"temperature", "still", "idle", "layers.2.0.gain"} < whole.keys()
    together = dict.fromkeys(whole, 0)
    for rank in range(ranks):
        told = next(line for line in read_json_lines(run.metrics_file(rank, 1)) if line["kind"] == "start")
        for name, value in told["parameter_digests"].items():
            together[name] += value
    assert {name: (together[name] - whole[name]) % 2**64 for name in whole} == dict.fromkeys(whole, 0)


def test_our_ring_moves_a_quarter_less_than_gloo_at_4_ranks(server, tmp_path):
    """Two all-gathers of 3/4 S and a reduce-scatter of 3/4 S; gloo's reduce-scatter sends 3/2 S."""
    sizes = [
        "data.input_size=64",
        "data.num_classes=16",
        "model.hidden_sizes=[256, 256]",
        "training.epochs=1",
    ]
    whole = 8 * (64 * 256 + 256 + 256 * 256 + 256 + 256 * 16 + 16)
    for reduce_scatter, expected in (("ring", 2.25), ("backend", 3.0)):
        run = train(server, tmp_path, *sizes, *fsdp(4, reduce_scatter=reduce_scatter))
        for rank in range(4):
            sent = sum(line["wire_bytes"] for line in lines(run, rank)) / len(lines(run, rank))
            assert sent / whole == pytest.approx(expected, rel=0.02)


def test_lower_precision_is_near_the_single_process_and_says_that_it_is_not_equal(server, tmp_path):
    options = ["training.precision=fp32", "training.epochs=1"]
    alone = train(server, tmp_path, *options, *SINGLE)
    for dtype, most in (("bf16", 0.03), ("fp16", 0.003)):
        half = train(server, tmp_path, *options, *fsdp(2, param_dtype=dtype, reduce_dtype="fp32"))
        assert 0 < largest_difference(alone, half) < most
    assert results(half)["epochs"][0]["train"]["loss"] == pytest.approx(
        results(alone)["epochs"][0]["train"]["loss"], rel=0.01
    )
    assert all(line["loss_scale"] > 1 for line in lines(half, 0))  # fp16 loses small gradients without


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (3, {"sharding": "hybrid", "ranks_per_group": 2}, "found 2 for 3 ranks, allowed: 1, 3"),
        (2, {"ranks_per_group": 2}, "found 2 beside sharding: full_shard, allowed: null"),
    ],
)
def test_groups_that_do_not_fit_are_refused_in_words(server, tmp_path, ranks, options, message):
    with pytest.raises(RunFailed, match=message):
        train(server, tmp_path, *fsdp(ranks, **options))
