"""What the parameters promise: one strict reading, messages that help, every default written out."""

from pathlib import Path
from typing import Any

import pytest

from lockstep import parameters
from lockstep.catalog.compare import inputs
from lockstep.catalog.run import Run
from lockstep.choices import CHOICES
from lockstep.errors import ParametersError
from reading import Reader, reader, refused

ROOT = Path(__file__).parent.parent


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    return reader(tmp_path)


def test_the_file_that_comes_along_says_the_defaults() -> None:
    assert parameters.difference(parameters.read(None), parameters.read(ROOT / "parameters.yaml")) == []


def test_every_default_is_written_out() -> None:
    value = parameters.read(None).to_value()
    assert value == {
        "seed": 42,
        "data": {
            "name": "digits",
            "validation_fraction": 0.1,
            "test_fraction": 0.2,
            "augmentation": {"crop_padding": 0, "flip": False, "crop_scale": None},
        },
        "model": {"name": "mlp", "weights": None, "hidden_sizes": [256, 256], "dropout": 0.0},
        "training": {
            "epochs": 30,
            "global_batch_size": 128,
            "optimizer": {"name": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.0},
            "learning_rate": 0.001,
            "schedule": {"name": "constant", "warmup_steps": 0},
            "max_grad_norm": None,
            "micro_batch_size": None,
            "precision": "fp32",
            "ema_decay": None,
            "channels_last": False,
            "tf32": False,
            "activation_checkpointing": False,
            "compile": False,
            "digest_every": 50,
        },
        "distributed": {
            "world_size": 2,
            "strategy": {"name": "ddp", **value["distributed"]["strategy"]},
            "launcher": "fork_server",
            "start_method": "forkserver",
            "device": "cpu",
            "backend": "gloo",
            "threads_per_rank": None,
            "timeout_seconds": 60.0,
        },
        "checkpoint": {"every_epochs": 1, "every_steps": None, "keep": 3, "closing_limit_gb": 8.0},
    }
    assert [next(iter(value[key])) for key in ("data", "model")] == ["name", "name"]


def test_values_are_reached_by_attribute_and_cannot_be_set() -> None:
    p = parameters.read(None, ["data=synthetic", "data.num_samples=20", "training.optimizer=sgd"])
    assert (p.data.name, p.data.options["num_samples"]) == ("synthetic", 20)
    assert (p.training.optimizer.name, p.training.optimizer.options["momentum"]) == ("sgd", 0.9)
    assert isinstance(p.distributed.timeout_seconds, float)
    with pytest.raises(ValueError, match="frozen"):
        p.training.epochs = 3  # type: ignore[misc]


def test_options_of_one_value_never_change_another() -> None:
    parameters.read(None).model.options["hidden_sizes"].append(1)
    parameters.read(None).to_value()["model"]["hidden_sizes"].append(1)
    assert parameters.read(None).model.options["hidden_sizes"] == [256, 256]


WHOLE = "allowed: a whole number from 1 to 1,000,000"
BAD = {
    "float for whole": (
        "training:\n  epochs: 2.7",
        f"p.yaml:2: training.epochs: found 2.7 (a float), {WHOLE}",
    ),
    "text for whole": ("training:\n  epochs: '2'", f"p.yaml:2: training.epochs: found '2' (text), {WHOLE}"),
    "boolean for whole": (
        "training: {epochs: true}",
        f"p.yaml:1: training.epochs: found true (a boolean), {WHOLE}",
    ),
    "null for whole": ("training: {epochs: null}", f"p.yaml:1: training.epochs: found null, {WHOLE}"),
    "list for whole": ("training: {epochs: [1]}", f"p.yaml:1: training.epochs: found [1] (a list), {WHOLE}"),
    "below": ("training: {epochs: 0}", f"p.yaml:1: training.epochs: found 0 (a whole number), {WHOLE}"),
    "NaN": (
        "training:\n  learning_rate: .nan",
        "p.yaml:2: training.learning_rate: found .nan, allowed: finite numbers",
    ),
    "zero rate": (
        "training:\n  learning_rate: 0",
        "p.yaml:2: training.learning_rate: found 0 (a whole number), allowed: a number above 0",
    ),
    "boolean for float": (
        "training: {learning_rate: true}",
        "p.yaml:1: training.learning_rate: found true (a boolean), allowed: a number above 0",
    ),
    "nullable": (
        "training: {max_grad_norm: x}",
        "p.yaml:1: training.max_grad_norm: found 'x' (text), allowed: a number above 0, or null",
    ),
    "no ranks": (
        "distributed:\n  world_size: 0",
        "p.yaml:2: distributed.world_size: found 0 (a whole number), allowed: a whole number from 1 to 1,024",
    ),
    "more ranks than samples": (
        "distributed:\n  world_size: 256",
        "p.yaml:2: distributed.world_size: found 256, "
        "allowed: at most training.global_batch_size, which is 128; "
        "set distributed.world_size=128 or training.global_batch_size=256",
    ),
    "single on two": (
        "distributed: {strategy: single}",
        "p.yaml:1: distributed.world_size: found 2, allowed with the strategy single: 1; "
        "set distributed.world_size=1 or another distributed.strategy",
    ),
    "no training data": (
        "data: {test_fraction: 0.6, validation_fraction: 0.4}",
        "p.yaml:1: data.test_fraction: found 0.6 beside data.validation_fraction 0.4, "
        "allowed: less than 1 together",
    ),
    "no test data": (
        "data: {test_fraction: 0}",
        "p.yaml:1: data.test_fraction: found 0 (a whole number), allowed: a number above 0 and below 1",
    ),
    "two rhythms": (
        "checkpoint: {every_steps: 4, every_epochs: 1}",
        "p.yaml:1: checkpoint.every_steps: found 4 beside checkpoint.every_epochs 1, "
        "allowed: one of the two; set the other to null",
    ),
    "unknown key": (
        "checkpoint:\n  kep: 3",
        "p.yaml:2: checkpoint.kep: found an unknown key, "
        "allowed: every_epochs, every_steps, keep, closing_limit_gb; did you mean keep?",
    ),
    "key of another section": (
        "world_size: 2",
        "p.yaml:1: world_size: found an unknown key, "
        "allowed: seed, data, model, training, distributed, checkpoint; "
        "did you mean distributed.world_size?",
    ),
    "unknown choice": (
        "training: {precision: fp23}",
        "p.yaml:1: training.precision: found 'fp23' (text), allowed: fp32, fp64, bf16, fp16; did you mean fp32?",
    ),
    "unknown optimizer": (
        "training: {optimizer: adamv}",
        "p.yaml:1: training.optimizer.name: found 'adamv' (text), "
        "allowed: adam, adamw, sgd; did you mean adam?",
    ),
    "unknown option": (
        "training:\n  optimizer: {name: sgd,\n    momentun: 0.5}",
        "p.yaml:3: training.optimizer.momentun: found an unknown key, "
        "allowed: name, momentum, weight_decay; "
        "did you mean momentum?",
    ),
    "wrong option": (
        "training: {optimizer: {betas: [0.9]}}",
        "p.yaml:1: training.optimizer.betas: found [0.9] (a list), "
        "allowed: a list with 2 values, each value a number of 0 or more and below 1",
    ),
    "no name": (
        "training: {optimizer: 5}",
        "p.yaml:1: training.optimizer: found 5 (a whole number), "
        "allowed: adam, adamw, sgd, or a mapping with its name",
    ),
    "no section": (
        "checkpoint: 5",
        "p.yaml:1: checkpoint: found 5 (a whole number), "
        "allowed: a mapping with the keys every_epochs, every_steps, keep, closing_limit_gb",
    ),
    "own module": (
        "model: absent_module:net",
        "p.yaml:1: model.name: found 'absent_module:net', but there is no module absent_module, "
        "allowed: gpt, mlp, resnet, vit, or package.module:name",
    ),
    "duplicate key": (
        "seed: 1\nseed: 2",
        "p.yaml:2: found the key seed a second time, allowed: each key once (line 1 has it already)",
    ),
    "list": ("- 1", "p.yaml:1: found a list at the top level, allowed: sections such as training:"),
    "empty": ("", "p.yaml: found nothing (it is empty), allowed: sections such as training:"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_file_line_key_found_and_allowed(name: str, read: Reader) -> None:
    text, message = BAD[name]
    assert refused(read, text) == [message]


def test_plugin_names_that_are_near_are_suggested(read: Reader) -> None:
    (message,) = refused(read, "data: digitz")
    assert message.startswith("p.yaml:1: data.name: found 'digitz' (text), allowed: cifar10, digits, ")
    assert message.endswith("; did you mean digits?")


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_file(read: Reader) -> None:
    lines = refused(
        read, "distributed:\n  world_size: 0\nseed: -1\ntraining:\n  epocs: 1\n  precision: 1\n", "foo=1"
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["p.yaml:2", "distributed.world_size"],
        ["p.yaml:3", "seed"],
        ["p.yaml:5", "training.epocs"],
        ["p.yaml:6", "training.precision"],
        ["command line", "foo"],
    ]


def test_at_most_ten_problems_are_said(read: Reader) -> None:
    lines = refused(read, "".join(f"k{n}: 1\n" for n in range(13)))
    assert len(lines) == 11
    assert lines[-1] == "and 3 more"


def test_short_and_long_forms_are_the_same(read: Reader) -> None:
    short = read(
        "data: digits\nmodel: mlp\ndistributed: {strategy: ddp}\n"
        "training: {optimizer: adamw, schedule: cosine}"
    )
    long = read(
        "data: {name: digits}\nmodel: {name: mlp}\ndistributed: {strategy: {name: ddp}}\n"
        "training: {optimizer: {name: adamw, weight_decay: 0.01}, schedule: {name: cosine}}"
    )
    assert short == long
    assert short.training.schedule.options == {"warmup_steps": 0, "final_fraction": 0.0}


def test_reading_writes_nothing_into_the_callers_value() -> None:
    value: dict[str, Any] = {
        "data": "synthetic",
        "training": {"optimizer": "sgd"},
        "checkpoint": {"every_steps": 3},
    }
    before = repr(value)
    parameters.from_value(value)
    assert repr(value) == before


def test_every_choice_has_its_default_among_its_names() -> None:
    value = parameters.read(None).to_value()
    for path, (_, default) in CHOICES.items():
        at: Any = value
        for key in path:
            at = at[key]
        assert at["name"] == default


def test_the_launcher_is_named_for_what_it_does_and_its_former_name_is_still_read(tmp_path) -> None:
    for text in ("distributed: {launcher: spawn}", "distributed: {launcher: fork_server}", "seed: 42"):
        (tmp_path / "p.yaml").write_text(text)
        p = parameters.read(tmp_path / "p.yaml")
        assert p.distributed.launcher == "fork_server"
        assert "launcher: fork_server" in parameters.dump(p)
        assert p == parameters.read(None, ["distributed.launcher=spawn"])
    with pytest.raises(ParametersError, match=r"found 'spawned' .*allowed: fork_server"):
        parameters.read(None, ["distributed.launcher=spawned"])


def test_the_records_of_two_names_of_one_launcher_do_not_differ(tmp_path) -> None:
    for name in ("spawn", "fork_server"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "parameters.yaml").write_text(f"distributed:\n  launcher: {name}\n")
    before, now = (inputs.parameters_of(Run(tmp_path / name)) for name in ("spawn", "fork_server"))
    assert before == now == {"distributed.launcher": "fork_server"}
