"""What is refused before anything is started: a package that is missing, a launcher that starts several runs."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from lockstep import readiness
from lockstep.errors import UsageError

TINY = (
    "data=synthetic", "data.num_samples=60", "data.input_size=4", "data.num_classes=3", "model.hidden_sizes=[4]",
    "training.epochs=1",
)  # fmt: skip


def without(folder, *modules):
    """An environment in which these modules are not installed."""
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, path=None, target=None):\n"
        f"    return None if name.split('.')[0] in {modules} else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(without)\n"
    )
    return os.environ | {"PYTHONPATH": str(folder)}


def run_folders(catalog):
    return [path.name for path in catalog.glob("[!.]*")] if catalog.exists() else []


@pytest.mark.parametrize(
    ("modules", "words", "advice"),
    [
        (("torch",), TINY, "uv pip install torch"),
        (("sklearn",), (), "uv pip install scikit-learn"),
        (("yaml", "pydantic", "runnable"), TINY, "uv pip install pydantic pyyaml runnable"),
    ],
)
def test_a_missing_package_is_refused_in_one_line_before_a_run_is_made(
    modules, words, advice, command, tmp_path
):
    output = command.run(*words, status=2, env=without(tmp_path, *modules))
    assert advice in output
    assert output.startswith("error: ") and output.count("\n") == 1
    assert run_folders(command.catalog) == []


def test_every_command_that_starts_ranks_says_that_torch_is_missing(tmp_path):
    environment = without(tmp_path, "torch")
    for words in (
        ["resume", "latest"],
        ["collectives", "run", "--algorithm", "ring"],
        ["collectives", "bench"],
    ):
        command = [sys.executable, "-m", "lockstep.cli", *words]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, (words, done.stderr)
        assert "needs torch" in done.stderr and done.stderr.count("\n") == 1, words


def test_a_torch_that_cannot_be_imported_is_told_in_one_line(command, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    output = command.run(*TINY, "--run-id", "r", status=1, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "error: ranks cannot be started: ImportError: libcudart.so.13: no such file\n" in output
    assert "Traceback" not in output and "File " not in output
    listed = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", "list", "--catalog", str(command.catalog)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "failed: exception" in listed.stdout


def test_a_folder_of_data_called_torch_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "json5").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(readiness, "PACKAGES", {"json5": "json5", "json": "json"})
    with pytest.raises(UsageError, match="needs json5, "):
        readiness.require_packages("training")


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "torchrun"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, "torchrun"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, "srun"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),  # torchrun with one process
        ({"RANK": "0"}, None),
        ({"WORLD_SIZE": "8"}, None),
        ({"RANK": "", "WORLD_SIZE": "two"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # the batch script, of which there is one
    ],
)
def test_only_what_a_launcher_starts_several_times_is_refused(environment, launcher):
    if launcher is None:
        readiness.require_started_once("training", environment)
        return
    with pytest.raises(UsageError, match=rf"such as {launcher} has started this command"):
        readiness.require_started_once("training", environment)


def test_torchrun_does_not_start_several_runs(command):
    output = command.run(*TINY, status=2, env=os.environ | {"RANK": "1", "WORLD_SIZE": "2"})
    assert output.startswith("error: training starts its ranks by itself")
    assert "distributed.world_size=2" in output and output.count("\n") == 1
    assert run_folders(command.catalog) == []


@pytest.mark.slow
def test_the_real_torchrun_ends_with_our_line(command):
    words = ["--nproc_per_node=2", str(ROOT / "pipeline.py"), "--catalog", str(command.catalog), *TINY]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode != 0
    assert "such as torchrun has started this command 2 times" in done.stderr
    assert run_folders(command.catalog) == []
