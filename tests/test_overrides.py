"""What `key.path=value` on the command line promises."""

from pathlib import Path

import pytest

from lockstep import parameters
from lockstep.errors import ParametersError
from reading import Reader, reader, refused


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_an_override_replaces_what_the_file_says(read: Reader) -> None:
    text = "training: {epochs: 5, optimizer: adam}\nmodel: {dropout: 0.5}"
    p = read(
        text,
        "training.epochs=2",
        "model.hidden_sizes=[64,64]",
        "training.optimizer.weight_decay=1e-3",
        "distributed.strategy=single",
        "distributed.world_size=1",
        "training.epochs=3",
    )
    assert p.training.epochs == 3
    assert p.model.options == {"hidden_sizes": [64, 64], "dropout": 0.5}
    assert p.training.optimizer.options["weight_decay"] == 0.001
    assert p.distributed.strategy.name == "single"


def test_another_name_drops_only_the_options_of_the_former(read: Reader) -> None:
    text = "data:\n  name: synthetic\n  num_samples: 50\n  test_fraction: 0.3\n"
    for override in ("data=digits", "data.name=digits"):
        p = read(text, override)
        assert (p.data.name, p.data.options, p.data.test_fraction) == ("digits", {}, 0.3)
    adam = "training: {optimizer: {name: adam, betas: [0.8, 0.9], weight_decay: 0.1}}"
    assert read(adam, "training.optimizer=sgd").training.optimizer.options == {
        "momentum": 0.9,
        "weight_decay": 0.1,
    }
    assert read(adam, "training.optimizer=adamw").training.optimizer.options["betas"] == [0.8, 0.9]
    assert "unknown key" in refused(read, text, "data=digits", "data.num_samples=3")[0]
    assert "unknown key" in refused(read, text + "  num_sample: 3", "data=digits")[0]
    former = "training: {optimizer: {name: no_more, betas: [0.8, 0.9], rho: 1}}"
    assert read(former, "training.optimizer=sgd").training.optimizer.name == "sgd"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "command line: training.epochs: found 0 (a whole number)"),
        ("training.epochs", "command line: found 'training.epochs', allowed: key.path=value"),
        ("=1", "command line: found '=1', allowed: key.path=value"),
        ("training..epochs=1", "command line: found 'training..epochs=1', allowed: key.path=value"),
        ("training.epohcs=1", "command line: training.epohcs: found an unknown key"),
        ("trainnig.epochs=1", "command line: trainnig: found an unknown key"),
        ("seed.x=1", "command line: seed.x: found a key below seed, which is a single value"),
        ("training.epochs=a: b", "command line: training.epochs: found a nested key"),
        ("training.epochs=*a", "command line: training.epochs: found the alias *a"),
        ("training.learning_rate=.inf", "command line: training.learning_rate: found .inf"),
        ("training=5", "command line: training: found 5 (a whole number)"),
        ("model={hiden: 1}", "command line: model.hiden: found an unknown key"),
        ("data.name=", "command line: data.name: found null"),
        ("checkpoint.every_steps=0", "command line: checkpoint.every_steps: found 0 (a whole number)"),
    ],
)
def test_a_bad_override_names_the_command_line(override: str, message: str, read: Reader) -> None:
    (line,) = refused(read, "seed: 1\nmodel: {dropout: 0.5}", override)
    assert line.startswith(message)


def test_a_choice_of_steps_turns_epochs_off(read: Reader) -> None:
    for p in (
        read("checkpoint: {every_steps: 5}"),
        read("checkpoint: {every_epochs: 1}", "checkpoint.every_steps=5"),
        parameters.from_value({"checkpoint": {"every_steps": 5}}),
    ):
        assert (p.checkpoint.every_epochs, p.checkpoint.every_steps) == (None, 5)
    back = read("checkpoint: {every_steps: 5}", "checkpoint.every_epochs=2").checkpoint
    assert (back.every_epochs, back.every_steps) == (2, None)
    never = read("checkpoint: {every_epochs: null}").checkpoint
    assert (never.every_epochs, never.every_steps) == (None, None)
    both = refused(read, "seed: 1", "checkpoint.every_epochs=1", "checkpoint.every_steps=5")
    assert "one of the two" in both[0]


def test_the_difference_names_dotted_keys_and_both_values(read: Reader) -> None:
    a = read("seed: 1")
    b = read("seed: 1", "training.epochs=2", "training.optimizer=sgd", "model.hidden_sizes=[8]")
    assert parameters.difference(a, b) == [
        "model.hidden_sizes: [256, 256] -> [8]",
        "training.epochs: 30 -> 2",
        "training.optimizer.name: adam -> sgd",
        "training.optimizer.betas: [0.9, 0.999] -> absent",
        "training.optimizer.epsilon: 1e-08 -> absent",
        "training.optimizer.momentum: absent -> 0.9",
    ]
    assert parameters.difference(a, a) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_choice_within_a_choice_takes_its_options_dotted_too(order):
    words = [
        "distributed.strategy=allreduce",
        "distributed.strategy.compressor=topk",
        "distributed.strategy.compressor.ratio=0.05",
    ][::order]
    options = parameters.read(None, words).distributed.strategy.options
    assert options["compressor"] == parameters.read(
        None, ["distributed.strategy={name: allreduce, compressor: {name: topk, ratio: 0.05}}"]
    ).distributed.strategy.options["compressor"]  # fmt: skip
    assert options["compressor"]["ratio"] == 0.05


def test_an_option_that_is_no_choice_still_refuses_keys_below_it():
    with pytest.raises(ParametersError, match=r"bucket_mb"):
        parameters.read(None, ["distributed.strategy=allreduce", "distributed.strategy.bucket_mb.size=3"])
    with pytest.raises(ParametersError, match=r"algorithm"):
        parameters.read(
            None,
            ["distributed.strategy={name: allreduce, algorithm: ring}", "distributed.strategy.algorithm.x=3"],
        )
