"""Promise 12: the tutorial's flat keys, its variants, its two ways to be started, resumed, and fed nonsense."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, wait_until
from lockstep import parameters, strict_yaml
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.datasets.synthetic import synthetic
from lockstep.errors import ParametersError, UsageError
from lockstep.files import read_json
from lockstep.orchestration.splits import split

FOLDER = ROOT / "examples" / "tutorials" / "pytorch_distributed"
KEYS = dict(world_size=4, epochs=10, batch_size=64, learning_rate=0.001, hidden_size=256, input_size=784)
KEYS |= dict(num_classes=10, num_samples=20000, train_split=0.8)
FILES = {  # processes, samples per process and step, hidden size
    "parameters.yaml": (4, 64, 256),
    "variants/8_processes.yaml": (8, 32, 512),
    "variants/2_processes.yaml": (2, 128, 128),
    "variants/1_process.yaml": (1, 256, 256),
}
TINY = ("num_samples=400", "input_size=16", "epochs=1")


@pytest.fixture(scope="module")
def tutorial():
    """pipeline.py as a module."""
    spec = importlib.util.spec_from_file_location("tutorial_pipeline", FOLDER / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def snippets(word):
    """The programs in the README that hold a word."""
    found = re.findall(r"<<'END'\n(.*?)\nEND$", (FOLDER / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return [code for code in found if word in code]


class Tutorial:
    """The tutorial's command in a catalog of its own."""

    def __init__(self, catalog):
        self.catalog = catalog

    def start(self, *words, shape=(sys.executable, "pipeline.py"), cwd=FOLDER, **environment):
        return subprocess.Popen(
            [*shape, "--catalog", str(self.catalog), *words],
            cwd=cwd,
            env=os.environ | {"UV_NO_SYNC": "1"} | environment,  # whoever runs the tests has synced
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words, code=0, **options):
        """To its end; (stdout, stderr)."""
        process = self.start(*words, **options)
        output, errors = process.communicate(timeout=100)
        assert process.returncode == code, f"{process.returncode}, not {code}:\n{output}\n{errors}"
        assert "Traceback" not in output + errors
        return output, errors

    def made(self, run_id):
        return Run((self.catalog / run_id).resolve())


@pytest.fixture
def command(tmp_path):
    return Tutorial(tmp_path / "catalog")


@pytest.fixture(scope="module")
def uv():
    return os.environ.get("UV") or shutil.which("uv") or pytest.skip("uv is not installed")


def test_the_flat_keys_are_exactly_those_promised(tutorial):
    assert strict_yaml.read(FOLDER / "parameters.yaml").value == KEYS
    assert set(tutorial.keys()) == set(KEYS)
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")} == set(FILES)
    assert all(set(strict_yaml.read(FOLDER / name).value) == set(KEYS) for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_file_maps_onto_the_library(tutorial, name):
    ranks, batch, hidden = FILES[name]
    wanted = tutorial.read(FOLDER / name, [], None)
    assert wanted.distributed.world_size == ranks
    assert wanted.distributed.strategy.name == "ddp"
    assert wanted.training.global_batch_size == ranks * batch
    assert wanted.training.optimizer.name == "adam"
    assert (wanted.training.epochs, wanted.training.learning_rate) == (10, 0.001)
    assert (wanted.model.name, wanted.model.options["hidden_sizes"]) == ("mlp", [hidden, hidden])
    assert wanted.data.name == "synthetic"
    assert wanted.data.options == {"num_samples": 20000, "input_size": 784, "num_classes": 10}


def test_a_train_split_of_0_8_leaves_16_000_of_20_000_samples_and_halves_the_rest(tutorial):
    data = tutorial.read(FOLDER / "parameters.yaml", [], None).data
    source = synthetic(42, data.test_fraction, num_samples=20_000, input_size=1)
    parts = split(source, data.validation_fraction, data.test_fraction, 42)
    counts = {name: len(labels) for name, (_, labels) in parts.items()}
    assert counts == {"train": 16_000, "validation": 2_000, "test": 2_000}


@pytest.mark.parametrize("change", ["train_split=0.3", "train_split=0.7123", "world_size=3", "epochs=7"])
def test_resuming_finds_the_flat_keys_again(tutorial, tmp_path, change):
    run, file = Run(tmp_path), FOLDER / "variants/8_processes.yaml"
    before = tutorial.read(file, [change], None)
    run.parameters.write_text(parameters.dump(before))
    assert tutorial.read(None, [], run) == before
    assert tutorial.read(None, ["epochs=20"], run) == tutorial.read(file, [change, "epochs=20"], None)


@pytest.mark.parametrize("made_otherwise", ["data=digits", "seed=1", "model.hidden_sizes=[]"])
def test_a_run_that_flat_keys_cannot_describe_is_not_resumed_with_them(tutorial, tmp_path, made_otherwise):
    run = Run(tmp_path)
    path = tmp_path / "made.yaml"
    path.write_text(parameters.dump(parameters.from_value(tutorial.to_library(KEYS))))
    run.parameters.write_text(parameters.dump(parameters.read(path, [made_otherwise])))
    with pytest.raises(UsageError, match="was not made by this pipeline"):
        tutorial.read(None, ["epochs=20"], run)


def test_it_runs_from_the_root_and_prints_what_it_makes(tutorial, command, uv):
    shape = (uv, "run", "--group", "tutorial", "examples/tutorials/pytorch_distributed/pipeline.py")
    output, _ = command.run("--run-id", "root", *TINY, shape=shape, cwd=ROOT)
    run = command.made("root")
    assert status.of(run).word == "succeeded"
    plan = read_json(run.plan)
    assert (plan["world_size"], plan["per_rank_batch"]) == (4, [64] * 4)
    assert plan["splits"] == {"train": 320, "validation": 40, "test": 40}
    shown = output.partition(f"{run.path} holds\n")[2]
    listed = [line.split()[0] for line in shown.splitlines()]
    assert sorted(listed) == sorted(path.name for path in run.path.iterdir())
    assert all(tutorial.FILES[name] in shown for name in listed)
    code = "\n".join(snippets("Batches(") + snippets("weights_only=True"))
    code = code.replace("../../../.catalog/four", str(run.path))
    said = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert "rows in epoch 1: 320 different ones: 320" in said
    assert "'1.weight': [256, 16]" in said


@pytest.mark.slow
def test_it_runs_from_its_own_folder_without_importing_torch_and_goes_on_in_more_processes(command, uv):
    shape = (uv, "run", "pipeline.py")
    words = ("--parameters", "variants/1_process.yaml", "--run-id", "one", "--tag", "small", *TINY)
    # What the fork server says of its imports goes to a file of its own.
    _, imported = command.run(*words, shape=shape, PYTHONPROFILEIMPORTTIME="1")
    assert "lockstep.launchers.client" in imported
    assert not re.search(r"\| +torch\b", imported)
    output, _ = command.run("--resume", "one")
    assert "nothing to resume" in output
    assert "--resume one epochs=2" in output
    words = ("epochs=2", "world_size=2", "--run-id", "two", "batch_size=128")
    output, _ = command.run("--resume", "one", *words, shape=shape)
    assert "training.epochs: 1 -> 2" in output
    assert "distributed.world_size: 1 -> 2" in output
    assert "from one step-00000002" in output
    assert read_json(command.made("two").results)["training"]["steps"] == 4


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped_started_from_anywhere(command):
    script = "examples/tutorials/pytorch_distributed/pipeline.py"
    shape = (sys.executable, script)
    words = ("--parameters", str(FOLDER / "variants/2_processes.yaml"), *TINY, "epochs=60")
    process = command.start("--run-id", "stopped", *words, shape=shape, cwd=ROOT)
    metrics = Run(command.catalog / "stopped").metrics_file(0)
    wait_until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text())
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert f"to continue: uv run {script} --resume stopped" in output
    output, _ = command.run("--resume", "stopped", shape=shape, cwd=ROOT)
    run = command.made("stopped")
    assert status.of(run).word == "succeeded"
    assert all(f"\n  {path.name} " in output for path in run.path.iterdir())


@pytest.mark.slow
def test_eight_processes_run(command):
    words = ("num_samples=100", "input_size=4", "hidden_size=4", "epochs=1")
    command.run("--parameters", "variants/8_processes.yaml", "--run-id", "eight", *words)
    plan = read_json(command.made("eight").plan)
    assert (plan["world_size"], plan["per_rank_batch"]) == (8, [32] * 8)


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("epochs: two", "epochs", "found 'two' (text), allowed: a whole number from 1 to 1,000,000"),
        ("epochs: 2.5", "epochs", "found 2.5 (a float), allowed: a whole number from 1 to 1,000,000"),
        ("world_size: 0", "world_size", "found 0 (a whole number), allowed: a whole number from 1 to 1,024"),
        ("train_split: 1.5", "train_split", "found 1.5 (a float), allowed: a number from 0.01 to 0.99"),
        ("train_split: .nan", "train_split", "found .nan, allowed: finite numbers"),
        ("learning_rate: -1", "learning_rate", "found -1 (a whole number), allowed: a number above 0"),
    ],
)
def test_a_bad_value_is_named_with_file_line_key_and_what_is_allowed(tutorial, tmp_path, line, key, message):
    path = tmp_path / "flat.yaml"
    text = (FOLDER / "parameters.yaml").read_text()
    path.write_text(re.sub(rf"^{key}:.*", line, text, flags=re.MULTILINE))
    number = path.read_text().splitlines().index(line) + 1
    with pytest.raises(ParametersError) as caught:
        tutorial.read(path, [], None)
    assert str(caught.value) == f"{path}:{number}: {key}: {message}"


def test_what_the_command_line_asks_for_is_checked_by_the_same_rules(tutorial):
    for word, message in {
        "train_split=1.5": "command line: train_split: found 1.5 (a float), allowed: a number from 0.01 to 0.99",
        "training.epochs=2": "command line: training.epochs: found an unknown key, allowed: world_size, epochs,",
        "data=digits": "command line: data.name: found an unknown key, allowed: world_size, epochs,",
    }.items():
        with pytest.raises(ParametersError) as caught:
            tutorial.read(FOLDER / "parameters.yaml", [word], None)
        assert str(caught.value).startswith(message)
        advice = "uv run lockstep run --parameters .catalog/RUN/parameters.yaml"
        assert (advice in str(caught.value)) == ("." in word.partition("=")[0] or word == "data=digits")


def test_bad_input_is_one_message_exit_status_2_and_nothing_written(command, tmp_path):
    path = tmp_path / "flat.yaml"
    path.write_text((FOLDER / "variants/1_process.yaml").read_text().replace("hidden_size:", "hiden_size:"))
    _, errors = command.run("--parameters", str(path), code=2)
    assert f"{path}:6: hiden_size: found an unknown key, allowed: world_size, epochs" in errors
    assert "did you mean hidden_size?" in errors
    assert f"{path}: hidden_size: found nothing, but it has no default; allowed: a whole number" in errors
    _, errors = command.run("--parameters", str(tmp_path / "nowhere.yaml"), code=2)
    assert errors == f"error: {tmp_path / 'nowhere.yaml'}: there is no such file\n"
    _, errors = command.run("epochs", code=2)
    assert errors == "error: 'epochs' is not key=value, such as epochs=2 (see --help)\n"
    assert not command.catalog.exists()


def test_the_readme_points_at_files_that_are_there():
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"\.\./\.\./\.\./(src/[\w/.]+)\)", text))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert all(Path(FOLDER / name).exists() for name in re.findall(r"variants/\w+\.yaml", text))
