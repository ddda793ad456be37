"""Explicit distribution: the same maths over our own collectives, and the same bits where they are asked for."""

import itertools

import pytest

from lockstep.errors import RunFailed
from lockstep.files import read_json_lines
from marks import quick_are, slow
from training import bits, largest_difference, results, train

TRANSPORTS = ("shm", "tcp", "gloo")


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(
        server, tmp_path_factory.mktemp("single"), "distributed.strategy=single", "distributed.world_size=1"
    )


@pytest.mark.parametrize(
    ("transport", "ranks"),
    quick_are(
        [("shm", 1), ("shm", 2), ("shm", 4), *((name, 3) for name in TRANSPORTS)],
        itertools.product(TRANSPORTS, (1, 2, 3, 4)),
    ),
)
def test_allreduce_equals_the_single_process(server, tmp_path, reference, ranks, transport):
    run = train(
        server, tmp_path, f"distributed.world_size={ranks}", "distributed.strategy=allreduce",
        f"distributed.strategy.transport={transport}", "distributed.strategy.bucket_mb=0.001",
    )  # fmt: skip
    assert largest_difference(run, reference) < 1e-10


@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving_doubling", "direct", "hierarchical"])
def test_every_algorithm_gives_the_same_training(server, tmp_path, reference, algorithm):
    run = train(
        server, tmp_path, "distributed.world_size=3", "distributed.strategy=allreduce",
        f"distributed.strategy.algorithm={algorithm}",
    )  # fmt: skip
    assert largest_difference(run, reference) < 1e-10


@pytest.mark.parametrize("overlap", [True, False])
def test_overlap_changes_no_bit(server, tmp_path_factory, overlap):
    runs = [
        train(
            server, tmp_path_factory.mktemp("overlap"), "distributed.strategy=allreduce", "training.precision=fp32",
            "distributed.strategy.bucket_mb=0.0005", f"distributed.strategy.overlap={flag}",
        )
        for flag in ("true", "false")
    ]  # fmt: skip
    assert bits(runs[0]) == bits(runs[1])


def test_the_naive_version_is_the_same_maths(server, tmp_path, reference):
    run = train(server, tmp_path, "distributed.world_size=3", "distributed.strategy=naive")
    assert largest_difference(run, reference) < 1e-10


INVARIANT = (
    "distributed.strategy=allreduce",
    "distributed.strategy.reduction=invariant",
    "training.precision=fp32",
    "model.dropout=0.1",
    "training.global_batch_size=21",
)


def test_invariant_reduction_gives_the_same_bits_at_any_world_size(server, tmp_path):
    found = {
        n: bits(train(server, tmp_path, *INVARIANT, f"distributed.world_size={n}")) for n in (1, 2, 3, 4, 8)
    }
    assert len(set(found.values())) == 1, found


def test_invariant_bits_do_not_depend_on_where_a_shard_stands_in_memory(server, tmp_path):
    """Rows of 52 bytes: from wherever a rank's first shard begins, the others would be aligned in another way."""
    words = ("distributed.strategy={name: allreduce, reduction: invariant}", "training.precision=fp32")
    words = (*words, "data.input_size=13", "training.epochs=1", "training.micro_batch_size=2")
    found = {n: bits(train(server, tmp_path, *words, f"distributed.world_size={n}")) for n in (1, 2, 3, 8)}
    assert len(set(found.values())) == 1, found


def test_without_it_the_bits_differ_between_world_sizes(server, tmp_path):
    words = [word for word in INVARIANT if "invariant" not in word and "dropout" not in word]
    found = {n: bits(train(server, tmp_path, *words, f"distributed.world_size={n}")) for n in (1, 2, 3)}
    assert len(set(found.values())) > 1  # else the test above would show nothing


def test_invariant_bits_survive_a_stop_in_an_epoch_and_another_world_size(server, tmp_path):
    whole = train(server, tmp_path, *INVARIANT, "distributed.world_size=3")
    part = train(
        server,
        tmp_path,
        *INVARIANT,
        "distributed.world_size=2",
        "checkpoint.every_steps=5",
        "checkpoint.keep=9",
    )
    middle = part.checkpoints / "step-00000010"  # 7 steps to an epoch
    rest = train(server, tmp_path, *INVARIANT, "distributed.world_size=4", start=middle)
    assert bits(rest) == bits(whole) == bits(part)


def test_weights_used_twice_never_or_by_some_ranks_are_treated_as_by_one_process(server, tmp_path):
    words = ("model=own_models:odd", "training.optimizer=adamw", "training.global_batch_size=6")
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    together = train(server, tmp_path, *words, "distributed.strategy=allreduce", "distributed.world_size=3")
    assert largest_difference(alone, together) < 1e-10


@pytest.mark.parametrize("strategy", [slow("allreduce"), "{name: allreduce, bucket_mb: 0.0001}", "naive"])
def test_a_weight_that_only_an_earlier_micro_batch_used_keeps_its_gradient(server, tmp_path, strategy):
    words = (
        "model=own_models:some",
        "training.micro_batch_size=3",
        "training.optimizer=sgd",
        "training.epochs=1",
    )
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    together = train(server, tmp_path, f"distributed.strategy={strategy}", *words, "distributed.world_size=2")
    assert largest_difference(alone, together) < 1e-10


def test_a_gradient_that_comes_in_several_parts_is_added_up_or_refused_and_never_lost(server, tmp_path):
    words = ("model=own_models:reentrant", "training.epochs=1")
    alone = train(server, tmp_path, *words, "distributed.strategy=single", "distributed.world_size=1")
    for strategy in ("allreduce", "{name: allreduce, bucket_mb: 0.000001, overlap: false}", "naive"):
        together = train(
            server, tmp_path, *words, f"distributed.strategy={strategy}", "distributed.world_size=2"
        )
        assert largest_difference(alone, together) < 1e-10
    with pytest.raises(RunFailed, match=r"block.* came twice in one backward pass.*overlap to false"):
        train(server, tmp_path, *words, "distributed.strategy={name: allreduce, bucket_mb: 0.000001}")


def test_the_choice_of_algorithm_is_recorded_with_its_reason(server, tmp_path):
    run = train(server, tmp_path, "distributed.strategy=allreduce", "distributed.strategy.transport=tcp")
    start = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "start")
    assert start["strategy"]["buckets"][0]["algorithm"] in ("direct", "ring", "tree", "halving_doubling")
    assert "expected" in start["strategy"]["reasons"][0]


def test_bytes_on_the_wire_are_what_the_ring_needs(server, tmp_path):
    run = train(
        server, tmp_path, "distributed.world_size=3", "distributed.strategy=allreduce",
        "distributed.strategy={name: allreduce, algorithm: ring, transport: gloo}",
    )  # fmt: skip
    line = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step")
    start = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "start")
    size = sum(bucket["bytes"] for bucket in start["strategy"]["buckets"])
    assert line["wire_bytes"] == pytest.approx(2 * 2 / 3 * size, rel=0.02)
    assert results(run)["ranks"][0]["wire_bytes"] > 0


def test_auto_chooses_by_the_links_that_it_is_told_of_and_records_why(server, tmp_path, reference):
    """Slow messages want few of them (4 in turn, not 6); where bytes cost, all send the same, and fewer rounds win;
    two machines with a slow link between them want a hierarchy."""
    chosen = {}
    links = {
        "messages": "inside_alpha_us: 5000.0, inside_gb_per_second: 50.0",
        "bytes": "inside_alpha_us: 0.001, inside_gb_per_second: 0.0001",
        "machines": "ranks_per_machine: 2, inside_alpha_us: 0.01, between_alpha_us: 0.01, "
        "between_gb_per_second: 0.000001",
    }
    for name, link in links.items():
        run = train(
            server, tmp_path / name, "distributed.world_size=4",
            f"distributed.strategy={{name: allreduce, transport: tcp, {link}}}",
        )  # fmt: skip
        assert largest_difference(run, reference) < 1e-10
        start = read_json_lines(run.metrics_file(0))[0]["strategy"]
        chosen[name] = start["buckets"][0]["algorithm"]
        assert all(
            f": {chosen[name]}, {chosen[name]} is expected to take" in text for text in start["reasons"]
        )
    assert chosen == {"messages": "halving_doubling", "bytes": "direct", "machines": "hierarchical"}


def test_invariant_sums_larger_than_the_shared_memory_between_two_ranks_do_not_wait_for_each_other(
    server, tmp_path
):
    """Each rank sends more than the slots hold before it receives anything."""
    options = ["training.epochs=1", "model.hidden_sizes=[64, 256]", "distributed.timeout_seconds=20"]
    way = "distributed.strategy={name: allreduce, reduction: invariant, transport: {name: shm, slot_kb: 4}}"
    runs = [train(server, tmp_path, *options, way, f"distributed.world_size={ranks}") for ranks in (1, 2)]
    assert bits(runs[0]) == bits(runs[1])


@pytest.mark.parametrize("strategy", ["ddp", "allreduce"])
def test_a_megabyte_of_a_bucket_is_a_million_bytes_under_every_strategy(server, tmp_path, strategy):
    words = ("training.epochs=1", "model.hidden_sizes=[64]", "training.precision=fp32")
    # 12 x 64 weights with their biases are 3,328 bytes, 64 x 5 with theirs 1,300: apart in 4,600 bytes, not in 4,700.
    run = train(server, tmp_path, *words, f"distributed.strategy={{name: {strategy}, bucket_mb: 0.0046}}")
    start = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "start")["strategy"]
    if strategy == "ddp":
        assert start["bucket_bytes"] == 4_600
    else:
        assert len(start["buckets"]) == 2 and max(each["bytes"] for each in start["buckets"]) <= 4_600
