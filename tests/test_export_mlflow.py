"""Export to a real MLflow server on loopback, which needs the whole package beside the client of the extra:

uv run --extra mlflow --with mlflow pytest -m slow tests/test_export_mlflow.py
"""

import json
import os
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from importlib.util import find_spec

import pytest

import exporting
from conftest import wait_until
from lockstep.catalog import events, seal
from lockstep.catalog.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # the server takes its time to start, and longer on a busy machine
    pytest.mark.skipif(not (find_spec("mlflow") and find_spec("flask")), reason="mlflow is not installed"),
]
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
PARENT = {"run_id": "first", "checkpoint": "step-00000033", "manifest_sha256": "cd" * 32}


class Server:
    """The REST interface, asked without MLflow's own client."""

    def __init__(self, address):
        self.address = address

    def get(self, path, /, **words):
        query = urllib.parse.urlencode(words)
        with urllib.request.urlopen(f"{self.address}/api/2.0/mlflow/{path}?{query}", timeout=60) as answer:
            return json.load(answer)

    def runs(self):
        ids = [self.get("experiments/get-by-name", experiment_name="lockstep")["experiment"]["experiment_id"]]
        request = urllib.request.Request(
            f"{self.address}/api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": ids, "max_results": 1000}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer).get("runs", [])

    def run(self, name):
        """The one run of that name: its facts, parameters, tags and last metrics."""
        (found,) = [each for each in self.runs() if each["info"]["run_name"] == name]
        data = {
            kind: {entry["key"]: entry["value"] for entry in found["data"].get(kind, [])}
            for kind in ("params", "tags", "metrics")
        }
        return {**found["info"], **data}

    def history(self, run_id, key):
        found = self.get("metrics/get-history", run_id=run_id, metric_key=key, max_results=10_000)
        return found.get("metrics", [])

    def artifacts(self, run_id, path=""):
        listed = self.get("artifacts/list", run_id=run_id, **({"path": path} if path else {}))
        return {each["path"]: each.get("file_size") for each in listed.get("files", [])}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, **QUIET},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, (folder / "log").read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        wait_until(answers, seconds=300)
        yield Server(address)
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)
        log.close()


def export(server, catalog, run_id, *words, status=0):
    """The real command in a process of its own; what it said."""
    command = [sys.executable, "-m", "lockstep.cli", "export", run_id, "--catalog", str(catalog)]
    address = server.address if isinstance(server, Server) else server
    command += ["--format", "mlflow", "--tracking-uri", address, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout + done.stderr


def test_a_run_arrives_whole_once_and_goes_on_where_it_went_on(server, tmp_path):
    catalog = tmp_path / ".catalog"
    run = exporting.build(catalog, "first")
    told = export(server, catalog, "first", "--json")
    assert told["was"] == "made" and told["status"] == "FINISHED"
    found = server.run("first")
    assert found["status"] == "FINISHED"
    assert found["end_time"] - found["start_time"] == 10_000
    assert found["params"]["training.learning_rate"] == "0.001"
    assert found["params"]["model.hidden_sizes"] == "[256, 256]"
    assert found["tags"]["lockstep.data_identity"] == exporting.IDENTITY
    assert found["tags"]["mlflow.source.git.commit"] == exporting.COMMIT
    assert found["metrics"]["test.loss"] == 0.0874
    losses = server.history(found["run_id"], "loss")
    assert [each["step"] for each in losses] == list(range(1, 34))
    assert losses[9]["value"] == pytest.approx((64 * 0.1 + 32 * 1.1) / 96)
    times = [each["timestamp"] for each in losses]
    assert times == sorted(times) and found["start_time"] <= times[0] < times[-1] <= found["end_time"]
    artifacts = server.artifacts(found["run_id"])
    assert artifacts["parameters.yaml"] == run.parameters.stat().st_size
    assert {"provenance.json", "source.patch", "uv.lock", "manifest.json", "events.jsonl"} <= artifacts.keys()
    assert "checkpoints" not in artifacts

    again = export(server, catalog, "first", "--json")
    assert again["mlflow_run"] == told["mlflow_run"] and again["was"] == "there already"
    assert {again["parameters"], again["metrics"], again["artifacts"]} == {"0 new", "0 new points", "0 sent"}
    assert len(server.runs()) == 1 and len(server.history(found["run_id"], "loss")) == 33

    begun = "2026-11-20T13:00:00.000000Z"
    events.append(run, "started", time=begun, attempt=2, process={"host": "bench-1"})
    events.append(run, "step_started", time=begun, step="train")
    for rank in range(2):
        exporting.metrics(run, rank, 34, 44, attempt=2)
    events.append(run, "finished", **{**exporting.FINISHED, "status": "failed", "cause": "hang", "rank": 1})
    seal.seal(run)
    export(server, catalog, "first", "--with-checkpoints")
    found = server.run("first")
    assert found["run_id"] == told["mlflow_run"] and found["status"] == "FAILED"
    assert (found["tags"]["lockstep.cause"], found["tags"]["lockstep.rank"]) == ("hang", "1")
    assert [each["step"] for each in server.history(found["run_id"], "loss")] == list(range(1, 45))
    step = server.artifacts(found["run_id"], "checkpoints/step-00000033")
    assert "checkpoints/step-00000033/model.safetensors" in step


def test_lineage_and_every_ending_are_told(server, tmp_path):
    catalog = tmp_path / ".catalog"
    exporting.build(catalog, "first")
    export(server, catalog, "first")
    exporting.build(catalog, "second", parent=PARENT)
    export(server, catalog, "second")
    tags = server.run("second")["tags"]
    assert tags["lockstep.parent"] == "first" and tags["lockstep.parent_kind"] == "resumed"
    assert tags["lockstep.parent_checkpoint"] == "step-00000033"
    assert tags["lockstep.parent_mlflow_run"] in {each["info"]["run_id"] for each in server.runs()}
    for word, expected in (("failed", "FAILED"), ("interrupted", "KILLED")):
        exporting.build(catalog, word, ending={**exporting.FINISHED, "status": word, "cause": "x"})
        export(server, catalog, word)
        assert server.run(word)["status"] == expected


def test_hostile_names_and_values_arrive_as_text(server, tmp_path):
    catalog = tmp_path / ".catalog"
    run = exporting.build(catalog, "hostile", sealed=False)
    lines = run.events.read_text().splitlines()
    run.events.unlink()
    for number, line in enumerate(lines):
        fields = json.loads(line)
        if number == 0:
            fields["tag"] = "<script>\x1b[31m\u202e" + "x" * 10_000
        fields = {key: value for key, value in fields.items() if key != "previous"}
        events.append(Run(run.path), fields.pop("event"), **fields)
    run.parameters.write_text('"../../x; <b>": 1\n"": 2\nlong: ' + "y" * 5000 + "\n")
    run.results.unlink()
    run.results.symlink_to("/etc/passwd")
    export(server, catalog, "hostile")
    found = server.run("hostile")
    assert found["tags"]["lockstep.tag"].startswith("<script>") and len(found["tags"]["lockstep.tag"]) <= 5000
    assert len(found["params"]["long"]) == 500
    assert run.results.name not in server.artifacts(found["run_id"])


def test_a_server_that_is_not_there_is_one_line_and_exit_status_1(tmp_path):
    catalog = tmp_path / ".catalog"
    exporting.build(catalog, "lonely")
    text = export("http://127.0.0.1:9", catalog, "lonely", status=1)
    assert text.startswith("error: MLflow at http://127.0.0.1:9") and text.count("\n") == 1
