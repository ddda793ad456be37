"""Every strategy and every transport that stand in their folders, held against the single process in fp64."""

import itertools

import pytest

from lockstep import parameters, plugins
from lockstep.engine.evaluation import evaluate_run
from lockstep.errors import RunFailed, UsageError
from lockstep.files import read_json, read_json_lines
from lockstep.orchestration import combinations
from marks import quick_are, slow
from training import bits, largest_difference, results, train

NOT_EXACT = ["local_sgd"]  # by a list, since asking them would import all of torch before the first test
NAMES = [name for name in plugins.names("strategies") if name not in NOT_EXACT]
SHARED = [name for name in NAMES if name != "single"]
TRANSPORTS = [name for name in plugins.names("transports") if name != "queue"]  # which joins threads
CARRIED = [name for name in SHARED if "transport" in plugins.schema("strategies", name)]
DEEP = ("model.hidden_sizes=[24, 24, 24, 24]", "training.epochs=2")
WHOLE = ["ddp", "allreduce", "naive", "parameter_server", "fsdp"]  # for models that are no sequence of parts


def test_all_strategies_are_held_against_it_but_those_that_say_they_are_not_exact():
    names = plugins.names("strategies")
    assert [name for name in names if not plugins.load("strategies", name).exact] == NOT_EXACT


@pytest.fixture(scope="module")
def single(server, tmp_path_factory):
    """The single process of some words; each is trained once."""
    known = {}

    def of(*words):
        if words not in known:
            alone = ("distributed.strategy=single", "distributed.world_size=1")
            known[words] = train(server, tmp_path_factory.mktemp("single"), *words, *alone)
        return known[words]

    return of


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    quick_are([(name, 3) for name in SHARED], itertools.product(SHARED, (1, 2, 3, 4))),
)
def test_every_exact_strategy_is_the_single_process_at_any_world_size(
    server, tmp_path, single, strategy, ranks
):
    words = (f"distributed.strategy={strategy}", f"distributed.world_size={ranks}")
    assert largest_difference(train(server, tmp_path, *DEEP, *words), single(*DEEP)) < 1e-10


@pytest.mark.parametrize(
    ("strategy", "transport", "ranks"),
    quick_are(
        [("naive", "tcp", 2), ("parameter_server", "shm", 2)],
        itertools.product(CARRIED, TRANSPORTS, (1, 2, 3, 4)),
    ),
)
def test_every_transport_carries_every_exact_strategy(server, tmp_path, single, strategy, transport, ranks):
    words = (
        f"distributed.strategy={{name: {strategy}, transport: {transport}}}",
        f"distributed.world_size={ranks}",
    )
    assert largest_difference(train(server, tmp_path, *DEEP, *words), single(*DEEP)) < 1e-10


@pytest.mark.parametrize("strategy", [*WHOLE, "{name: allreduce, reduction: invariant}"])
@pytest.mark.parametrize("optimizer", ["adam", slow("sgd")])
def test_weights_that_do_not_stand_row_by_row_in_memory_are_trained_alike(
    server, tmp_path, single, strategy, optimizer
):
    words = ("model=own_models:laid", "training.epochs=2", f"training.optimizer={optimizer}")
    run = train(server, tmp_path, *words, f"distributed.strategy={strategy}", "distributed.world_size=2")
    assert largest_difference(run, single(*words)) < 1e-10


@pytest.mark.parametrize("strategy", ["ddp", "allreduce", "naive", slow("parameter_server")])
@pytest.mark.parametrize("optimizer", ["adam", slow("sgd")])
def test_a_weight_that_only_some_ranks_use_in_a_step_is_given_their_gradient(
    server, tmp_path, strategy, optimizer
):
    words = ("model=own_models:uneven", "training.epochs=2", f"training.optimizer={optimizer}")
    words = (*words, "distributed.world_size=3")
    run = train(server, tmp_path, *words, f"distributed.strategy={strategy}")
    # Which rows stand together decides what the model computes, so another world size is another model here.
    other = train(
        server, tmp_path, *words, "distributed.strategy={name: allreduce, bucket_mb: 0.0001, overlap: false}"
    )
    assert largest_difference(run, other) < 1e-10


@pytest.mark.parametrize(
    ("model", "looking", "size"),
    [slow("odd", "null", "null"), ("odd", "null", "3"), slow("some", "true", "3")],
)
def test_ddp_trains_a_model_that_leaves_weights_unused_and_resumes_in_the_same_bits(
    server, tmp_path, single, model, looking, size
):
    words = (f"model=own_models:{model}", "training.epochs=2", "training.optimizer=adamw")
    mine = (f"distributed.strategy={{name: ddp, find_unused_parameters: {looking}}}", "checkpoint.keep=9")
    mine = (*words, *mine, "distributed.world_size=3", f"training.micro_batch_size={size}")
    run = train(server, tmp_path, *mine)
    assert largest_difference(run, single(*words)) < 1e-10
    assert bits(train(server, tmp_path, *mine, start=run.checkpoints / "step-00000008")) == bits(run)


def test_ddp_says_what_to_set_where_a_weight_is_left_out_later_than_in_the_first_pass(server, tmp_path):
    words = ("model=own_models:fading", "distributed.strategy=ddp", "distributed.world_size=2")
    with pytest.raises(
        RunFailed, match=r"did not use first\.bias, .*find_unused_parameters to true, or .* allreduce"
    ):
        train(server, tmp_path, *words)


@pytest.mark.parametrize("strategy", ["ddp", slow("allreduce"), "fsdp", slow("parameter_server")])
def test_statistics_of_batches_are_judged_as_they_are_saved_and_resume_alike(server, tmp_path, strategy):
    words = ("model=own_models:normed", f"distributed.strategy={strategy}", "distributed.world_size=2")
    whole = train(server, tmp_path, *words, "checkpoint.keep=9")
    rest = train(server, tmp_path, *words, start=whole.checkpoints / "step-00000016")
    losses = [results(run)["epochs"][-1]["validation"]["loss"] for run in (whole, rest)]
    assert losses[0] == losses[1]
    assert bits(whole) == bits(rest)
    evaluated = evaluate_run(whole, parameters.read(whole.parameters, []))
    assert evaluated["final"]["validation"]["loss"] == pytest.approx(losses[0], abs=1e-12)


@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd"])
def test_counts_that_differ_between_ranks_are_those_of_the_checkpoint_for_all(server, tmp_path, strategy):
    pieces = (
        "training.global_batch_size=19",
        "training.micro_batch_size=9",
    )  # one pass of rank 0, two of rank 1
    words = (*pieces, f"distributed.strategy={strategy}", "distributed.world_size=2", "checkpoint.keep=9")
    whole = train(server, tmp_path, "model=own_models:counting", *words)
    middle = min(whole.checkpoints.glob("step-*"))
    rest = train(server, tmp_path, "model=own_models:counting", *words, start=middle)
    assert bits(whole) == bits(rest)
    assert results(whole)["epochs"][-1]["validation"] == results(rest)["epochs"][-1]["validation"]


@pytest.mark.parametrize("momentum", [0.9, slow(0.0)])
def test_sgd_takes_up_a_weight_whose_first_gradient_comes_later(server, tmp_path, momentum):
    words = ("model=own_models:uneven", f"training.optimizer={{name: sgd, momentum: {momentum}}}")
    words = (
        *words,
        "distributed.strategy=single",
        "distributed.world_size=1",
        "training.global_batch_size=3",
    )
    whole = train(server, tmp_path, *words, "checkpoint.every_steps=4", "checkpoint.keep=99")
    again = train(
        server, tmp_path, *words, "checkpoint.every_steps=4", "checkpoint.keep=99",
        start=whole.checkpoints / "step-00000004",
    )  # fmt: skip
    assert bits(again) == bits(whole)


def test_sparse_gradients_are_refused_in_words(server, tmp_path):
    words = ("model=own_models:sparse", "data=own_data:echo", "distributed.strategy=single")
    with pytest.raises(RunFailed, match=r"sparse gradients \(sparse=True\), which no strategy sums"):
        train(server, tmp_path, *words, "distributed.world_size=1")


@pytest.mark.parametrize("strategy", ["LabelledAllReduce", slow("LabelledInvariant"), slow("LabelledNaive")])
def test_messages_carry_the_step_that_the_metrics_do_also_after_a_resume(server, tmp_path, strategy):
    """What names a stalled rank's operation, bucket and step, and what a frame is compared with."""
    words = (
        f"distributed.strategy=own_strategies:{strategy}",
        "checkpoint.every_steps=4",
        "checkpoint.keep=99",
    )
    first = train(server, tmp_path, *words)
    train(server, tmp_path, *words, start=first.checkpoints / "step-00000008")


def test_virtual_shards_are_computed_by_one_thread_and_recorded_as_what_they_are(server, tmp_path):
    words = ("distributed.strategy={name: allreduce, reduction: invariant}", "distributed.threads_per_rank=2")
    run = train(server, tmp_path, *words, "distributed.world_size=2", "training.epochs=1")
    assert read_json(run.plan)["threads_per_rank"] == 1
    start = read_json_lines(run.metrics_file(0))[0]
    assert start["threads"] == 1
    assert {bucket["algorithm"] for bucket in start["strategy"]["buckets"]} == {"invariant"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{name: allreduce, transport: queue}"], r"queue joins threads of one process.*: gloo, shm, tcp"),
        (["{name: local_sgd, transport: queue}"], r"queue joins threads"),
        (["{name: allreduce, reduction: invariant}", "distributed.world_size=9"], r"found 9, .* at most 8"),
        (["{name: allreduce, reduction: invariant, algorithm: tree}"], r"algorithm: found tree, .*: auto"),
        (
            ["{name: allreduce, compressor: topk, algorithm: ring}"],
            r"algorithm: found ring, .*: auto, direct",
        ),
        (["{name: allreduce, transport: {name: tcp, network: nonsense}}"], r"transport.network: 'nonsense'"),
        (
            ["{name: allreduce, transport: {name: tcp, network: 127.0.0.1/8}}"],
            r"transport.network: .*host bits",
        ),
        (["local_sgd", "training.precision=fp16"], r"fp16 needs its loss scaled"),
        (["parameter_server", "training.ema_decay=0.9"], r"updated by servers"),
        (["tensor", "training.compile=true"], r"training.compile: with tensor .*: false"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(words, message):
    wanted = parameters.read(None, [f"distributed.strategy={words[0]}", *words[1:]])
    with pytest.raises(UsageError, match=message):
        combinations.check(wanted)
