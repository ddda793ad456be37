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


@pytest.mark.parametrize(
    "text",
    [
        "/x/corpus #2", "#2", "a #", "@x", "%x", "`x`", "...", " x ", "/x/a\tb", "C:\\new", "http://x/y#z",
        "a, b]", "}", "<<", "x='y'", "..#", "é #ü",
    ],
)  # fmt: skip
def test_a_text_is_taken_exactly_as_it_was_typed(text: str, tmp_path: Path) -> None:
    p = parameters.read(None, ["data=text", f"data.path={text}"])
    assert p.data.options["path"] == text
    again = tmp_path / "again.yaml"
    again.write_text(parameters.dump(p))
    assert parameters.read(again) == p


@pytest.mark.parametrize(
    "value",
    [
        "|", ">-", "|2 x", "&a x", "*.txt", "!!str x", "!x", "- x", "-", "? x", "x: y", "x:", "--- x",
        "'x' #y", '"x" y', "'x", "[x] #y", "[x, y #z]", "[x]#y", "{name: text #y}", "[x] y",
        "[|]", "[a: b]", "[? a]", "{a:1}", "{a}", "[*a]", "[!x y]", "a\u2028b", "a\x85b", "[a\u2029b]", "x\udce9",
    ],
)  # fmt: skip
def test_what_yaml_would_cut_or_change_is_refused_in_one_line(value: str) -> None:
    for key in ("data.path", "model.weights", "data.augmentation", "model.hidden_sizes"):
        with pytest.raises(ParametersError) as caught:
            parameters.read(None, ["data=text", f"{key}={value}"])
        assert str(caught.value).startswith(f"command line: {key}")
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["1e-400", "-1e-400", "0.0001e-330", "1e400", "-1e400"])
def test_a_number_that_cannot_be_held_is_refused_wherever_it_stands(value: str, read: Reader) -> None:
    (line,) = refused(read, "seed: 1", f"training.learning_rate={value}")
    assert line.startswith(f"command line: training.learning_rate: found {value}")
    (line,) = refused(read, f"training:\n  learning_rate: {value}")
    assert line.startswith(f"p.yaml:2: training.learning_rate: found {value}")
    assert read("seed: 1", "model.dropout=0e-400").model.options["dropout"] == 0.0


def test_a_variable_of_the_shell_that_is_not_set_is_not_taken_for_null(read: Reader) -> None:
    (line,) = refused(read, "seed: 1", "model.weights=")
    assert "nothing stands behind the =" in line
    assert "model.weights=null" in line


def test_a_folder_that_is_called_like_a_number_is_told_how_to_be_typed() -> None:
    with pytest.raises(ParametersError, match=r"found 2024 .*quoted, it is text"):
        parameters.read(None, ["data=text", "data.path=2024"])
    assert parameters.read(None, ["data=text", "data.path='2024'"]).data.options["path"] == "2024"
