"""The main job as a newcomer meets it: one command, real digits, a whole record."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conftest import ROOT, Command
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_seal
from lockstep.files import read_json, read_json_lines

STEPS = ["prepare_data", "setup_distributed", "train", "aggregate_metrics", "evaluate", "report"]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """(output, run) of the command with the shipped parameters.yaml, while somebody else reads the run log."""
    command = Command(tmp_path_factory.mktemp("main") / "catalog")
    log = command.catalog / "main" / "run_log.json"
    stop, torn = threading.Event(), []

    def read_all_the_time():
        while not stop.is_set():
            if log.exists():
                try:
                    json.loads(log.read_text())
                except ValueError as error:
                    torn.append(error)

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        output = command.run("--run-id", "main")
    finally:
        stop.set()
        reader.join()
    return output, Run((command.catalog / "main").resolve()), torn


def test_the_main_job_learns_real_digits(main_job):
    results = read_json(main_job[1].results)
    assert results["dataset"] == "digits"
    assert results["strategy"] == "ddp"
    assert results["evaluation"]["final"]["test"]["accuracy"] >= 0.96
    assert (
        results["evaluation"]["final"]["test"]["samples"]
        + sum(read_json(main_job[1].plan)["splits"][name] for name in ("train", "validation"))
        == 1797
    )


def test_every_file_of_the_design_is_in_the_folder(main_job):
    run = main_job[1]
    for path in (
        run.parameters, run.provenance, run.events, run.plan, run.results, run.model, run.report, run.run_log,
        run.manifest, run.data / "train.safetensors", run.data / "test.safetensors", run.data / "data.json",
        run.metrics / "rank-0.jsonl", run.metrics / "rank-1.jsonl", run.logs / "rank-0.log", run.logs / "train.log",
    ):  # fmt: skip
        assert path.is_file(), path
    assert not run.live.exists()
    assert not list(run.path.rglob(".tmp-*"))
    assert verify_seal(run) == []
    assert status.of(run).word == "succeeded"


def test_runnable_carried_out_every_step_and_its_log_is_in_the_folder(main_job):
    log = read_json(main_job[1].run_log)
    assert log["status"] == "SUCCESS"
    assert [step for step in log["steps"] if step in STEPS] == STEPS
    for name in STEPS:
        assert [attempt["status"] for attempt in log["steps"][name]["attempts"]] == ["SUCCESS"]
    put = {entry["name"] for entry in log["steps"]["train"]["data_catalog"] if entry["stage"] == "put"}
    assert any(name.startswith("checkpoints/") for name in put)
    assert {"metrics/rank-0.jsonl", "metrics/rank-1.jsonl", "logs/rank-1.log"} <= put
    assert log["parameters"]["training"]["value"]["epochs"] == 30


def test_the_run_log_is_never_seen_torn(main_job):
    assert main_job[2] == []


def test_the_console_shows_what_a_person_wants_and_none_of_runnables_dumps(main_job):
    output, run, _ = main_job
    for words in (*STEPS, "test acc", "samples/s", "together", "rank 1", run.run_id, str(run.report)):
        assert words in output, words
    assert re.search(r"epoch 30/30 +step 300/300 +loss 0\.\d+", output)
    for noise in (
        "Lets go",
        "PipelineContext",
        "Working with context",
        "Generated command",
        "data_catalog",
        "{",
    ):
        assert noise not in output, noise


def test_every_step_leaves_a_line_per_rank_with_seconds_that_add_up(main_job):
    run = main_job[1]
    for rank in (0, 1):
        lines = read_json_lines(run.metrics_file(rank))
        steps = [line for line in lines if line["kind"] == "step"]
        assert [line["step"] for line in steps] == list(range(1, 301))
        assert len([line for line in lines if line["kind"] == "epoch"]) == 30
        for line in steps:
            parts = line["data_seconds"] + line["compute_seconds"] + line["sync_seconds"]
            assert parts == pytest.approx(line["step_seconds"], abs=1e-9)
            assert min(line["data_seconds"], line["compute_seconds"], line["sync_seconds"]) >= 0
            assert ("parameter_digests" in line) == (line["step"] == 1 or line["step"] % 50 == 0)
        assert sum(line["samples"] for line in steps[:10]) in (629, 630)


def test_results_agree_with_each_other(main_job):
    results = read_json(main_job[1].results)
    test = results["evaluation"]["final"]["test"]
    confusion = test["confusion"]
    assert sum(map(sum, confusion)) == test["samples"]
    assert sum(confusion[i][i] for i in range(10)) / test["samples"] == pytest.approx(test["accuracy"])
    assert [entry["support"] for entry in test["per_class"]] == [sum(row) for row in confusion]
    best = results["evaluation"]["best"]
    losses = {epoch["step"]: epoch["validation"]["loss"] for epoch in results["epochs"]}
    assert losses[best["step"]] == min(losses.values())
    assert losses[best["step"]] == pytest.approx(best["validation"]["loss"], rel=1e-5)
    assert sum(rank["samples"] for rank in results["ranks"]) == results["training"]["samples"] == 30 * 1258


def test_the_history_tells_each_step_and_its_chain_holds(main_job):
    run = main_job[1]
    history = events.read(run)
    names = [event["event"] for event in history]
    assert names[:2] == ["created", "started"]
    assert names[-2:] == ["finished", "sealed"]
    assert [event["step"] for event in history if event["event"] == "step_finished"] == STEPS
    assert events.check_chain(run) == []


def test_the_exported_model_loads_without_pickled_code(main_job):
    import torch

    exported = torch.load(main_job[1].model, weights_only=True)
    assert exported["step"] == 300
    assert exported["model"]["1.weight"].shape == (256, 64)
    assert set(exported["optimizer"]["state"]) >= {"1.weight/exp_avg", "1.weight/exp_avg_sq"}


def test_every_default_is_written_out(main_job):
    text = main_job[1].parameters.read_text()
    for key in (
        "betas",
        "warmup_steps",
        "start_method",
        "digest_every",
        "timeout_seconds",
        "bucket_mb",
        "every_steps",
    ):
        assert key in text, key


def test_the_pipelines_process_never_imports_torch_or_scikit_learn_twice(tmp_path):
    code = (
        "import sys; from lockstep.cli import main; "
        f"status = main(['run', '--catalog', {str(tmp_path)!r}, 'data=synthetic', 'data.num_samples=200', "
        "'training.epochs=1']); assert status == 0, status; "
        "found = {'torch', 'sklearn', 'scipy'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_ten_runs_hold_one_copy_of_the_data_and_each_folder_is_whole(command):
    for name in ("a", "b"):
        command.run("--run-id", name, "training.epochs=1")
    files = [command.catalog / name / "data" / "train.safetensors" for name in ("a", "b")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    assert files[0].stat().st_mode & 0o777 == 0o444


@pytest.mark.slow
def test_relative_paths_and_modules_are_those_of_the_folder_the_command_was_started_in(command, tmp_path):
    (tmp_path / "words.txt").write_text("16")
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n"
        "from torch import nn\n"
        "def net(input_shape, num_classes, *, width_file: str = 'words.txt'):\n"
        "    width = int(Path(width_file).read_text())\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))\n"
    )
    (tmp_path / "mine.yaml").write_text("model: own:net\ntraining: {epochs: 2}\n")
    command.run("--run-id", "r", "--parameters", "mine.yaml", cwd=tmp_path)
    assert read_json(command.catalog / "r" / "distributed_training_results.json")["model"] == "own:net"


@pytest.mark.slow
def test_runnables_own_variables_do_not_overrule_the_parameters(command):
    environment = os.environ | {
        "RUNNABLE_PRM_seed": "7",
        "RUNNABLE_PARAMETERS_FILE": "/nowhere.yaml",
        "RUNNABLE_CONFIGURATION_FILE": "/nowhere.yaml",
        "RUNNABLE_RETRY_RUN_ID": "other",
        "RUNNABLE_RUN_ID": "another",
    }
    command.run("--run-id", "r", "training.epochs=1", env=environment)
    assert read_json(command.catalog / "r" / "run_log.json")["parameters"]["seed"]["value"] == 42


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_either_start_method_gives_the_same_bits(command, method, tmp_path_factory):
    from training import bits

    small = ("data=synthetic", "data.num_samples=300", "training.epochs=2")
    command.run("--run-id", "r", *small, f"distributed.start_method={method}")
    known = tmp_path_factory.getbasetemp() / "bits-by-start-method"
    mine = bits(Run((command.catalog / "r").resolve()))
    if known.exists():
        assert known.read_text() == mine
    known.write_text(mine)


def test_pipeline_py_is_a_few_lines_over_the_library():
    assert len((ROOT / "pipeline.py").read_text().splitlines()) <= 12


def test_build_is_pure():
    code = (
        "import sys, io, contextlib\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    from lockstep.orchestration.build import build\n"
        "one, two = build(), build()\n"
        "assert one.return_dag().model_dump() == two.return_dag().model_dump()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(ROOT))
