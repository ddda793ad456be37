"""Training through the compressors: bytes, bits, what they cost in accuracy on real data, and what is refused."""

import re
import statistics

import pytest
import torch
from safetensors.torch import load_file

from lockstep import parameters, plugins
from lockstep.compressors.base import Part, Residuals
from lockstep.engine.batches import map_split
from lockstep.errors import ParametersError, RunFailed
from lockstep.files import read_json_lines
from lockstep.orchestration import plan
from marks import quick_are, slow
from training import bits, final_state, results, train

NAMES = plugins.names("compressors")
SEEDS = (1, 2, 3)  # one point is 3.6 samples of the test split: less than what two seeds differ by
DIGITS = (
    "data=digits",
    "model.hidden_sizes=[256, 256]",
    "training.epochs=30",
    "training.global_batch_size=128",
    "checkpoint.every_epochs=null",
)
SHIPPED = (*DIGITS, "training.learning_rate=0.001", "training.precision=fp32")
# Error feedback is proven for SGD. Adam takes an element that comes all at once every hundredth step for a rare
# one, and moves less far than for a hundred small ones: at the shipped rate 30 epochs are too few for top-k.
SGD = (*DIGITS, "training.optimizer=sgd", "training.learning_rate=0.1", "training.precision=fp32")
ONE_BUCKET = 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10  # the elements of the shipped model


def strategy(compressor, **options):
    """An override: allreduce with this compressor."""
    words = [f"{key}: {value}" for key, value in options.items()]
    return f"distributed.strategy={{{', '.join(['name: allreduce', f'compressor: {compressor}', *words])}}}"


def sent_in_a_step(run):
    """By rank 0, in bytes."""
    return next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step")["wire_bytes"]


def accuracy(run):
    """Of the final weights on the test split."""
    state = load_file(max(run.checkpoints.glob("step-*")) / "model.safetensors")
    names = sorted({name.rpartition(".")[0] for name in state}, key=int)
    features, labels = map_split(run.data / "test.safetensors", torch.float32)
    values = features.flatten(1)
    for name in names:
        values = torch.relu(values) if name != names[0] else values
        values = torch.nn.functional.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])
    return float((values.argmax(dim=1) == labels).float().mean())


@pytest.fixture(scope="module")
def over_seeds(server, tmp_path_factory):
    """(mean test accuracy, mean final training loss, bytes a step) with a compressor; each is trained once."""
    folder = tmp_path_factory.mktemp("digits")
    known = {}

    def found(compressor, words):
        if (compressor, words) not in known:
            runs = [
                train(server, folder, *words, strategy(compressor, transport="gloo"), f"seed={seed}")
                for seed in SEEDS
            ]
            losses = [results(run)["epochs"][-1]["train"]["loss"] for run in runs]
            accuracies = [accuracy(run) for run in runs]
            known[compressor, words] = (
                statistics.mean(accuracies), statistics.mean(losses), sent_in_a_step(runs[0]),
            )  # fmt: skip
        return known[compressor, words]

    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "powersgd"])
def test_on_digits_it_trains_within_a_point_of_the_uncompressed_accuracy(over_seeds, name):
    assert over_seeds(name, SHIPPED)[0] >= over_seeds("null", SHIPPED)[0] - 0.01


@pytest.mark.slow
def test_one_percent_of_the_gradient_is_enough_with_error_feedback_and_visibly_not_without(over_seeds):
    whole, chosen = over_seeds("null", SGD), over_seeds("topk", SGD)
    without = over_seeds("{name: topk, error_feedback: false}", SGD)
    assert chosen[0] >= whole[0] - 0.01
    assert without[0] <= chosen[0] - 0.01
    assert without[1] >= 2 * chosen[1]  # the training loss


@pytest.mark.slow
def test_power_sgd_needs_its_error_feedback(over_seeds):
    without = over_seeds("{name: powersgd, error_feedback: false}", SHIPPED)
    assert without[0] <= over_seeds("powersgd", SHIPPED)[0] - 0.01


ONCE = ("training.epochs=1", *(word for word in SHIPPED if "epochs" not in word))


@pytest.fixture(scope="module")
def uncompressed(server, tmp_path_factory):
    """A short run of digits whose bytes the others' are compared with."""
    folder = tmp_path_factory.mktemp("bytes")
    return folder, sent_in_a_step(train(server, folder, *ONCE, strategy("null", transport="gloo")))


@pytest.mark.parametrize(
    ("compressor", "sent", "ratio"),
    [
        ("fp16", 2 * ONE_BUCKET + 2 * 4 + 6, 1.99),
        ("bf16", 2 * ONE_BUCKET + 6, 1.99),
        ("int8", ONE_BUCKET + 4 * 2 * -(-ONE_BUCKET // 2 // 256) + 6, 3.9),
        ("topk", round(0.01 * ONE_BUCKET) * 8 + 6, 49),  # 100 of the values alone, the indices take half
        ("powersgd", 4 * (2 * (64 + 256 + 256 + 256 + 256 + 10) + 256 + 256 + 10 + 6), 31),
    ],
)  # fmt: skip
def test_the_ratio_is_that_of_the_bytes_counted_on_the_transport(
    server, uncompressed, compressor, sent, ratio
):
    folder, plain = uncompressed
    assert plain == 4 * (ONE_BUCKET + 6)
    found = sent_in_a_step(train(server, folder, *ONCE, strategy(compressor, transport="gloo")))
    assert found == sent
    assert plain / found >= ratio


@pytest.mark.parametrize("name", quick_are(["powersgd"], NAMES))
def test_the_same_compressed_run_twice_gives_the_same_bits_with_overlap_or_without(server, tmp_path, name):
    words = ("distributed.world_size=3", "training.precision=fp32")
    runs = [
        train(server, tmp_path, *words, strategy(name, bucket_mb=0.0005, overlap=overlap))
        for overlap in ("true", "false")
    ]
    assert bits(runs[0]) == bits(runs[1])


@pytest.mark.parametrize("transport", ["shm", slow("tcp"), "gloo"])
def test_the_transport_changes_no_bit_of_a_compressed_run(server, tmp_path, transport):
    words = ("distributed.world_size=2", strategy("int8", transport=transport), "training.epochs=1")
    assert bits(train(server, tmp_path, *words)) == bits(
        train(server, tmp_path, *words[:1], strategy("int8"), *words[2:])
    )


@pytest.mark.parametrize("name", quick_are(["topk", "powersgd"], NAMES))
def test_a_parameter_that_nobody_uses_stays_as_it_was(server, tmp_path, name):
    words = ("model=own_models:odd", "training.optimizer=adamw", "distributed.world_size=2")
    run = train(server, tmp_path, *words, strategy(name))
    state = final_state(run)
    assert not [key for key in state if key.startswith("optimizer/never")]
    assert [key for key in state if key.startswith("optimizer/sometimes")]


def test_a_compressed_run_is_taken_up_under_any_strategy_with_nothing_left_over(server, tmp_path):
    run = train(server, tmp_path, strategy("topk"), "checkpoint.every_steps=5", "checkpoint.keep=9")
    middle = run.checkpoints / "step-00000010"
    names = {key.partition("/")[2].rpartition("/")[2] for key in final_state(run) if key.startswith("opt")}
    assert names == {"exp_avg", "exp_avg_sq", "step"}  # nothing of the compressor's is in a checkpoint
    one = train(server, tmp_path, strategy("topk"), start=middle)
    again = train(server, tmp_path, strategy("topk"), start=middle)
    assert bits(one) == bits(again)
    train(server, tmp_path, "distributed.strategy=single", "distributed.world_size=1", start=middle)


def test_invariant_reduction_beside_a_compressor_is_refused_in_one_line():
    with pytest.raises(ParametersError, match="found bf16 beside reduction: invariant") as caught:
        parameters.read(None, [strategy("bf16", reduction="invariant")])
    assert "\n" not in str(caught.value)


def test_an_algorithm_that_a_compressor_would_ignore_is_refused(server, tmp_path):
    message = "strategy.algorithm is ring: the compressor int8 exchanges directly"
    with pytest.raises(RunFailed, match=re.escape(message)):
        train(server, tmp_path, strategy("int8", algorithm="ring"))


def test_power_sgd_uses_the_algorithm_that_is_asked_for(server, tmp_path):
    run = train(server, tmp_path, "training.epochs=1", strategy("powersgd", algorithm="tree"))
    start = next(line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "start")
    assert start["strategy"]["buckets"][0]["algorithm"] == "tree"


def test_a_compressor_makes_the_strategy_inexact(tmp_path):
    from lockstep.strategies.allreduce import AllReduce
    from lockstep.strategies.base import Group

    for compressor, exact in ((None, True), ("bf16", False)):
        made = AllReduce(Group(0, 1, tmp_path / "r", 5.0), transport="queue", compressor=compressor)
        assert made.exact is exact
        made.close()


def test_null_is_no_compressor_and_options_stand_beside_the_name():
    for text, wanted in (
        ("null", None),
        ("topk", {"name": "topk", "ratio": 0.01, "error_feedback": True}),
        ("{name: topk, ratio: 0.5}", {"name": "topk", "ratio": 0.5, "error_feedback": True}),
    ):
        read = parameters.read(None, [strategy(text)])
        assert read.distributed.strategy.options["compressor"] == wanted
        assert parameters.from_value(read.to_value()) == read
    with pytest.raises(ParametersError, match="did you mean topk"):
        parameters.read(None, [strategy("topkk")])


def test_a_sparse_compressor_under_adam_is_warned_of():
    splits = {"train": 1000, "validation": 100, "test": 100}
    said = []
    for optimizer in ("adam", "sgd"):
        words = [
            "distributed.strategy={name: allreduce, compressor: topk}",
            f"training.optimizer={optimizer}",
        ]
        said.append(plan.warnings(parameters.read(None, words), splits, 1, 64))
    assert any("topk" in warning and "about every 100th step" in warning for warning in said[0])
    assert not said[1]


@pytest.mark.parametrize(
    "compressor", ["int8", slow("topk"), "powersgd", slow("{name: powersgd, warm_start: false}")]
)
def test_a_step_that_overflows_in_fp16_leaves_nothing_over_and_training_goes_on(server, tmp_path, compressor):
    words = (
        "model=own_models:loud",
        "training.precision=fp16",
        "training.epochs=4",
        "training.optimizer=sgd",
    )
    words = (*words, "training.learning_rate=0.001", strategy(compressor), "distributed.world_size=2")
    run, again = (train(server, tmp_path / str(number), *words) for number in range(2))
    steps = [line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step"]
    skipped = [line["skipped"] for line in steps]
    assert skipped[0] and sum(skipped) < 12, skipped  # of 32; without a compressor it is eight
    assert bits(run) == bits(again)


def test_what_was_left_over_counts_in_the_scale_of_the_gradients_that_it_is_added_to():
    part = Part(0, torch.tensor([1.0, 2.0, 1.0]), [torch.Size([2])], None)
    left = Residuals(True)
    left.begin(8.0)
    left.keep(part, torch.tensor([4.0, -2.0]))
    left.begin(4.0)  # halved: so is what is left
    assert left.added_to(part).tolist() == [3.0, 1.0]
    left.keep(part, torch.tensor([float("inf"), 0.0]))
    left.undo()
    left.begin(8.0)
    assert left.added_to(part).tolist() == [5.0, 0.0]
