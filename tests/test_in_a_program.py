"""What a program or notebook may do that calls the command line's `main` in its own process."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from conftest import ROOT
from lockstep import own_modules, parameters, plugins, strict_yaml
from lockstep.errors import ParametersError

TINY = [
    "data=synthetic", "data.num_samples=60", "data.input_size=4", "data.num_classes=3", "model.hidden_sizes=[4]",
    "training.epochs=1", "distributed.strategy=single", "distributed.world_size=1",
]  # fmt: skip


def program(folder, text, **environment):
    """A program of somebody's own, run in a folder; what it printed."""
    (folder / "program.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=290, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_main_may_be_called_in_a_thread_and_leaves_signals_and_variables_as_they_were(tmp_path):
    output = program(
        tmp_path,
        f"""
import os, signal, threading, time
from lockstep.cli import main
before = [signal.getsignal(number) for number in (2, 15, 1)]
found = []
def train(name):
    found.append((name, main(["run", *{TINY}, "--catalog", "c", "--run-id", name])))
first = threading.Thread(target=train, args=("a",))
first.start()
while not os.path.exists("c/a"):  # once it is under way
    time.sleep(0.01)
train("b")
first.join()
print(found, before == [signal.getsignal(number) for number in (2, 15, 1)], os.environ["RUNNABLE_PRM_x"])
""",
        RUNNABLE_CONFIGURATION_FILE="other.yaml",
        RUNNABLE_PRM_x="3",
    )
    assert "[('b', 2), ('a', 0)] True 3" in output
    assert "another thread of this process is making a run" in output
    assert "warning: ignored: RUNNABLE_CONFIGURATION_FILE, RUNNABLE_PRM_x in the environment" in output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_main_may_be_called_within_an_event_loop_and_a_ctrl_c_is_heard_afterwards(tmp_path):
    output = program(
        tmp_path,
        f"""
import asyncio, os, signal, threading
from lockstep.cli import main
async def train():
    return main(["run", *{TINY}, "--catalog", "c"])
print(asyncio.run(train()))
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("ignored")
except KeyboardInterrupt:
    print("heard")
print(main(["run", *{TINY}, "--catalog", "c"]))
""",
    )
    assert output.count("\n0\n") == 2 and "heard" in output


OWN = """
import numpy as np, torch
from lockstep.datasets import Source
from own_values import VALUE

def data(seed, test_fraction, *, rows: int = {rows}):
    return Source(np.full((rows, 4), VALUE, dtype=np.float32), np.arange(rows) % 2, ["a", "b"])

def net(input_shape, num_classes, *, width: int = {rows}):
    return torch.nn.Linear(4, num_classes)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_module_that_was_edited_between_two_runs_of_one_process_is_imported_anew(tmp_path):
    (tmp_path / "own.py").write_text(OWN.format(rows=40))
    (tmp_path / "own_values.py").write_text("VALUE = 1.0")
    program(
        tmp_path,
        f"""
from pathlib import Path
import own  # as a notebook would, beforehand
from lockstep.cli import main
words = ["run", "data=own:data", "model=own:net", "training.epochs=1", "training.global_batch_size=8"]
for name in "ab":
    assert main([*words, *{TINY[-2:]}, "--catalog", "c", "--run-id", name]) == 0
    Path("own.py").write_text(Path("own.py").read_text().replace("= 40", "= 50"))
    Path("own_values.py").write_text("VALUE = 2.0")
""",
    )
    seen = []
    for name in "ab":
        run = tmp_path / "c" / name
        rows = json.loads((run / "distributed.json").read_text())["splits"]
        value = load_file(run / "data" / "train.safetensors")["features"][0, 0]
        seen.append(
            (
                sum(rows.values()),
                float(value),
                strict_yaml.read(run / "parameters.yaml").value["model"]["width"],
            )
        )
    assert seen == [(40, 1.0, 40), (50, 2.0, 50)]


def test_an_edit_within_the_second_that_keeps_the_size_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "importable_from", lambda path: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fleeting_value.py").write_text("VALUE = 1\n")
    file = tmp_path / "fleeting.py"
    file.write_text("from fleeting_value import VALUE\ndef net(a, b, *, width: int = VALUE): ...\n")
    for value in (1, 2):
        (tmp_path / "fleeting_value.py").write_text(f"VALUE = {value}\n")
        os.utime(tmp_path / "fleeting_value.py", ns=(10**18 + value, 10**18 + value))
        own_modules.forget_changed()
        assert plugins.schema("models", "fleeting:net")["width"].default == value
    kept = sys.modules["fleeting"]
    own_modules.forget_changed()
    assert sys.modules["fleeting"] is kept


def test_what_only_this_process_has_is_refused_in_one_line(monkeypatch):
    main = types.ModuleType("__main__")
    main.net = lambda input_shape, num_classes: None
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(
        ParametersError, match=r"__main__:net.*such as own\.py, and name it own:net"
    ) as caught:
        parameters.read(None, ["model=__main__:net"])
    assert "\n" not in str(caught.value)
    assert plugins.origin("time:sleep") is None


def test_signals_are_put_back_after_every_command(tmp_path):
    from lockstep.cli import main

    before = signal.getsignal(signal.SIGTERM)
    assert main(["list", "--catalog", str(tmp_path)]) in (0, 2)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_of_the_main_job_says_where_a_step_goes():
    done = subprocess.run(
        [sys.executable, str(Path("benchmarks") / "main_job.py"), "--profile", "--epochs", "1", "--world-size", "1"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "microseconds a step" in done.stdout and "in all" in done.stdout
