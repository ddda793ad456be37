import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import uuid
from datetime import datetime

import pytest

import exporting
from lockstep.catalog import events, status
from lockstep.catalog.export import material, points
from lockstep.cli import export as export_command
from lockstep.errors import CorruptRecord, UsageError

RUN_ID = "20261120-115146-3f9a2c"
PARENT = {
    "run_id": "older",
    "checkpoint": "step-00000120",
    "manifest_sha256": "cd" * 32,
    "kind": "reproduced",
}
URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]+")  # RFC 3986, its scheme in lower case
HEX = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def catalog(tmp_path):
    return tmp_path / ".catalog"


@pytest.fixture
def run(catalog):
    return exporting.build(catalog)


def call(*words):
    parser = argparse.ArgumentParser()
    export_command.configure(parser)
    return export_command.run(parser.parse_args([str(word) for word in words]))


def exported(capsys, catalog, run_id, form):
    assert call(run_id, "--format", form, "--catalog", catalog) == 0
    text = capsys.readouterr().out
    assert text.isascii()
    return text


def statement(capsys, catalog, run_id=RUN_ID):
    return json.loads(exported(capsys, catalog, run_id, "in-toto"))


def lineage_events(capsys, catalog, run_id=RUN_ID):
    return [json.loads(line) for line in exported(capsys, catalog, run_id, "openlineage").splitlines()]


def check_descriptor(value):
    """A ResourceDescriptor v1: known fields, one of the three that identify, digests in lower-case hex."""
    known = {"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"}
    assert value.keys() <= known and value.keys() & {"uri", "digest", "content"}
    assert all(isinstance(value[key], str) for key in {"name", "uri"} & value.keys())
    assert "uri" not in value or URI.fullmatch(value["uri"])
    for algorithm, digest in value.get("digest", {}).items():
        length = {"sha256": 64, "gitCommit": 40}[algorithm]
        assert re.fullmatch(f"[0-9a-f]{{{length}}}", digest)


def check_statement(value):
    """A Statement v1 with the predicate SLSA Provenance v1: every field required is there, no other is."""
    assert value.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    for each in value["subject"]:
        check_descriptor(each)
        assert HEX.fullmatch(each["digest"]["sha256"])
    names = [each["name"] for each in value["subject"]]
    assert names and len(set(names)) == len(names)
    predicate = value["predicate"]
    assert predicate.keys() == {"buildDefinition", "runDetails"}
    build, details = predicate["buildDefinition"], predicate["runDetails"]
    assert {"buildType", "externalParameters"} <= build.keys()
    assert build.keys() <= {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert URI.fullmatch(build["buildType"]) and isinstance(build["externalParameters"], dict)
    assert {"builder"} <= details.keys() <= {"builder", "metadata", "byproducts"}
    assert URI.fullmatch(details["builder"]["id"])
    assert details["builder"].keys() <= {"id", "version", "builderDependencies"}
    assert all(isinstance(version, str) for version in details["builder"]["version"].values())
    assert details["metadata"].keys() <= {"invocationId", "startedOn", "finishedOn"}
    assert all(TIME.fullmatch(details["metadata"][key]) for key in ("startedOn", "finishedOn"))
    for each in [*build["resolvedDependencies"], *details["byproducts"]]:
        check_descriptor(each)


def test_the_statement_has_the_form_of_in_toto_with_slsa_provenance(run, catalog, capsys):
    check_statement(statement(capsys, catalog))


def test_the_subjects_of_the_statement_are_the_checkpoints_and_the_model_by_their_bytes(run, catalog, capsys):
    subject = {each["name"]: each["digest"]["sha256"] for each in statement(capsys, catalog)["subject"]}
    paths = [path for path in [*run.checkpoints.rglob("*"), run.model] if path.is_file()]
    assert len(paths) == 5
    assert subject == {
        str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def test_the_statement_names_code_data_packages_parent_and_parameters(catalog, capsys):
    run = exporting.build(catalog, "child", parent=PARENT)
    value = statement(capsys, catalog, "child")["predicate"]
    found = {each["name"]: each for each in value["buildDefinition"]["resolvedDependencies"]}
    assert found["source"]["digest"] == {"gitCommit": exporting.COMMIT}
    assert found["source"]["uri"] == f"git+https://example.org/ada/lockstep.git@{exporting.COMMIT}"
    assert found["source"]["annotations"]["dirty"] is True
    assert found["dataset"]["digest"]["sha256"] == exporting.IDENTITY
    assert found["parent checkpoint"]["digest"]["sha256"] == "cd" * 32
    assert found["parent checkpoint"]["annotations"]["run_id"] == "older"
    assert found["torch"]["uri"] == "pkg:pypi/torch@2.13.0"
    for name in ("uv.lock", "source.patch", "parameters.yaml", "data/train.safetensors"):
        assert found[name]["digest"]["sha256"] == hashlib.sha256((run.path / name).read_bytes()).hexdigest()
    parameters = value["buildDefinition"]["externalParameters"]["parameters"]
    assert parameters["training"]["learning_rate"] == 0.001
    assert value["runDetails"]["metadata"]["invocationId"] == "child"
    assert value["runDetails"]["metadata"]["startedOn"] == "2026-11-20T11:51:46.123456Z"
    byproducts = {each["name"]: each for each in value["runDetails"]["byproducts"]}
    covered = json.loads(run.manifest.read_text())["events"]
    assert byproducts["events.jsonl"]["digest"]["sha256"] == covered["sha256"]
    seal = hashlib.sha256(run.manifest.read_bytes()).hexdigest()
    assert byproducts["manifest.json"]["digest"]["sha256"] == seal
    results = byproducts["distributed_training_results.json"]["annotations"]
    assert results["status"] == "succeeded" and results["test_loss"] == 0.0874


@pytest.mark.parametrize("form", ["in-toto", "openlineage"])
@pytest.mark.parametrize("sealed", [True, False])
def test_nothing_is_said_of_bytes_that_are_not_those_that_were_written(catalog, form, sealed):
    run = exporting.build(catalog, sealed=sealed)
    path = next(run.checkpoints.iterdir()) / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(CorruptRecord, match=r"model\.safetensors holds other bytes"):
        call(RUN_ID, "--format", form, "--catalog", catalog)
    path.unlink()
    with pytest.raises(CorruptRecord, match=r"model\.safetensors"):
        call(RUN_ID, "--format", form, "--catalog", catalog)
    path.symlink_to("/etc/hostname")
    with pytest.raises(CorruptRecord, match=r"model\.safetensors"):
        call(RUN_ID, "--format", form, "--catalog", catalog)


def check_event(value):
    """A RunEvent 2-0-2: required fields, and every facet with its producer and schema."""
    assert value.keys() <= {
        "eventType",
        "eventTime",
        "producer",
        "schemaURL",
        "run",
        "job",
        "inputs",
        "outputs",
    }
    assert value["eventType"] in ("START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER")
    assert TIME.fullmatch(value["eventTime"]) and datetime.fromisoformat(value["eventTime"])
    assert URI.fullmatch(value["producer"]) and URI.fullmatch(value["schemaURL"])
    assert str(uuid.UUID(value["run"]["runId"])) == value["run"]["runId"]
    assert value["job"]["namespace"] and value["job"]["name"]
    datasets = [*value["inputs"], *value["outputs"]]
    assert all(each["namespace"] and each["name"] for each in datasets)
    holders = [value["run"], value["job"], *datasets]
    facets = [facet for holder in holders for facet in holder["facets"].items()]
    facets += [facet for each in value["outputs"] for facet in each["outputFacets"].items()]
    for name, facet in facets:
        assert URI.fullmatch(facet["_producer"]) and URI.fullmatch(facet["_schemaURL"])
        assert name.startswith("lockstep_") or name in facet["_schemaURL"].lower() or name in STANDARD
    assert len(facets) >= 4


STANDARD = (
    "errorMessage",
    "processing_engine",
    "sourceCodeLocation",
    "jobType",
    "version",
    "outputStatistics",
)


def test_the_events_have_the_form_of_openlineage(run, catalog, capsys):
    found = lineage_events(capsys, catalog)
    for each in found:
        check_event(each)
    assert [each["eventType"] for each in found] == ["START", "COMPLETE"]
    assert found[0]["run"]["runId"] == found[1]["run"]["runId"]
    assert found[0]["eventTime"] < found[1]["eventTime"]


def test_a_parents_checkpoint_is_an_input_under_the_name_of_its_own_runs_output(catalog, capsys):
    first = exporting.build(catalog, "first")
    (output,) = lineage_events(capsys, catalog, "first")[-1]["outputs"]
    (checkpoint,) = first.checkpoints.iterdir()
    digest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    parent = {"run_id": "first", "checkpoint": checkpoint.name, "manifest_sha256": digest}
    exporting.build(catalog, "second", parent=parent)
    data, start = lineage_events(capsys, catalog, "second")[0]["inputs"]
    assert (start["namespace"], start["name"]) == (output["namespace"], output["name"])
    versions = {each["facets"]["version"]["datasetVersion"] for each in (output, start)}
    assert versions == {digest}
    assert data["facets"]["version"]["datasetVersion"] == exporting.IDENTITY
    assert data["facets"]["lockstep_digest"]["files"]["train"]["samples"] == 1294
    files = output["facets"]["lockstep_digest"]["files"]
    assert (
        files["model.safetensors"]["sha256"] and output["outputFacets"]["outputStatistics"]["fileCount"] == 4
    )


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ({**exporting.FINISHED, "status": "failed", "cause": "hang", "message": "rank 1 hangs"}, "FAIL"),
        ({**exporting.FINISHED, "status": "interrupted", "cause": "SIGINT"}, "ABORT"),
    ],
)
def test_how_a_run_ended_is_said_in_the_words_of_openlineage(catalog, capsys, ending, kind):
    exporting.build(catalog, ending=ending)
    last = lineage_events(capsys, catalog)[-1]
    assert last["eventType"] == kind
    message = last["run"]["facets"]["errorMessage"]
    assert message["message"] == (ending["message"] or ending["cause"])
    assert message["programmingLanguage"] == "PYTHON"


def test_a_killed_run_is_a_failure_and_a_running_one_has_no_end(catalog, capsys):
    run = exporting.build(catalog, ending=None)
    events.append(run, "started", attempt=2, process={**status.process_identity(), "start_ticks": 0})
    assert lineage_events(capsys, catalog)[-1]["eventType"] == "FAIL"
    check_statement(statement(capsys, catalog))
    held = status.hold(run)
    try:
        assert [each["eventType"] for each in lineage_events(capsys, catalog)] == ["START"]
        with pytest.raises(UsageError, match="is running: a statement on it is made after its end"):
            statement(capsys, catalog)
    finally:
        status.release(run, held)


def test_a_run_that_may_go_on_elsewhere_and_one_without_checkpoints_get_no_statement(catalog, capsys):
    run = exporting.build(catalog, ending=None)  # of another host
    with pytest.raises(UsageError, match="it ran on bench-1"):
        statement(capsys, catalog)
    events.append(run, "finished", **exporting.FINISHED)
    for path in [*run.checkpoints.rglob("*"), run.model]:
        if path.is_file():
            path.unlink()
    for path in run.checkpoints.iterdir():
        path.rmdir()
    with pytest.raises(UsageError, match="no checkpoint and no model"):
        statement(capsys, catalog)


def test_the_identity_elsewhere_is_that_of_the_record_wherever_it_lies(run, catalog, tmp_path, capsys):
    before = lineage_events(capsys, catalog)[0]["run"]["runId"]
    moved = run.path.rename(tmp_path / RUN_ID)
    text = exported(capsys, catalog, moved, "openlineage")
    assert json.loads(text.splitlines()[0])["run"]["runId"] == before
    exporting.build(catalog, "another")
    assert lineage_events(capsys, catalog, "another")[0]["run"]["runId"] != before


def test_output_goes_to_a_file_or_into_a_folder_and_never_into_the_record(run, catalog, tmp_path, capsys):
    options = [RUN_ID, "--format", "in-toto", "--catalog", catalog, "--output"]
    assert call(*options, tmp_path / "said.json") == 0
    check_statement(json.loads((tmp_path / "said.json").read_text()))
    (tmp_path / "folder").mkdir()
    assert call(*options, tmp_path / "folder") == 0
    assert (tmp_path / "folder" / f"{RUN_ID}.intoto.json").is_file()
    before = sorted(path.name for path in run.path.rglob("*"))
    (tmp_path / "way").symlink_to(run.path)
    os.mkfifo(tmp_path / "pipe")
    for target, words in [
        (run.path / "said.json", "inside the run's own folder"),
        (run.path, "inside the run's own folder"),
        (tmp_path / "way" / "x", "inside the run's own folder"),
        (tmp_path / "none" / "x", "there is no folder"),
        (tmp_path / "pipe", "is no file"),
    ]:
        with pytest.raises(UsageError, match=words):
            call(*options, target)
    assert sorted(path.name for path in run.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "in-toto", "--tracking-uri", "x"], "--tracking-uri does not go with --format in-toto"),
        (["--format", "openlineage", "--experiment", "x"], "--experiment does not go with"),
        (["--format", "mlflow", "--output", "x"], "--output does not go with --format mlflow"),
    ],
)
def test_options_of_one_format_are_refused_with_another(run, catalog, words, message):
    with pytest.raises(UsageError, match=message):
        call(RUN_ID, *words, "--catalog", catalog)


def in_a_process(catalog, *words, before=""):
    code = f"import sys; {before}\nfrom lockstep.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "export", RUN_ID, "--catalog", str(catalog), *words]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_mlflow_without_a_server_or_without_the_package_says_what_is_missing(run, catalog):
    done = in_a_process(catalog, "--format", "mlflow")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no MLflow server is named: --tracking-uri")
    without = "sys.modules['mlflow'] = None"
    done = in_a_process(catalog, "--format", "mlflow", "--tracking-uri", "http://127.0.0.1:9", before=without)
    assert done.returncode == 2 and "--extra mlflow" in done.stderr and "Traceback" not in done.stderr


def test_an_address_that_the_mlflow_client_does_not_take_is_refused_in_one_line(run, catalog):
    fake = (
        "import types; mlflow, errors, requests = (types.ModuleType(name) for name in ('mlflow', 'm.e', 'requests'))\n"
        "class Wrong(Exception): pass\n"
        "def client(uri): raise Wrong('found a URI of a kind\\nthat it does not know')\n"
        "mlflow.MlflowClient, errors.MlflowException, requests.RequestException = client, Wrong, OSError\n"
        "sys.modules |= {'mlflow': mlflow, 'mlflow.exceptions': errors, 'requests': requests}"
    )
    for address in ("./mlruns", "sqlite:///mlflow.db"):
        done = in_a_process(catalog, "--format", "mlflow", "--tracking-uri", address, before=fake)
        assert done.returncode == 2, done.stderr
        assert (
            done.stderr.startswith(f"error: --tracking-uri: found {address}")
            and "Traceback" not in done.stderr
        )
        assert "a URI of a kind)" in done.stderr and "uv pip install mlflow" in done.stderr
        assert done.stderr.count("\n") == 1


def test_export_imports_neither_torch_nor_runnable_nor_mlflow_for_other_formats(run, catalog):
    for form in ("in-toto", "openlineage"):
        heavy = "{'torch', 'runnable', 'mlflow'} & set(sys.modules)"
        after = f"import atexit; atexit.register(lambda: sys.stderr.write(' '.join({heavy})))"
        done = in_a_process(catalog, "--format", form, before=after)
        assert (done.returncode, done.stderr) == (0, "")


def test_points_are_sample_weighted_and_later_attempts_win_at_their_own_time(catalog):
    run = exporting.build(catalog, epochs=2, ending=None)
    begun = "2026-11-20T13:00:00.000000Z"
    events.append(run, "started", time=begun, attempt=2, process={"host": "bench-1"})
    events.append(run, "step_started", time=begun, step="train")
    for rank in range(2):
        exporting.metrics(run, rank, 21, 30, attempt=2)
    events.append(run, "finished", time="2026-11-20T13:01:00.000000Z", **exporting.FINISHED)
    found = list(points.points(material.gather(run)))
    losses = {point.step: point for point in found if point.name == "loss"}
    assert sorted(losses) == list(range(1, 31))
    assert losses[10].value == pytest.approx((64 * 0.1 + 32 * 1.1) / 96)
    assert losses[2].milliseconds - losses[1].milliseconds == 10
    first = datetime.fromisoformat(begun).timestamp() * 1000
    assert losses[20].milliseconds < first <= losses[21].milliseconds - 10
    times = [losses[step].milliseconds for step in sorted(losses)]
    assert times == sorted(times)
    epochs = {point.step: point.value for point in found if point.name == "validation.loss"}
    assert epochs == {
        11: pytest.approx((10 * 0.5 + 20 * 1.5) / 30),
        22: pytest.approx((10 * 0.5 + 20 * 1.5) / 30),
    }
    assert {point.name for point in found} >= {
        "learning_rate",
        "grad_norm",
        "samples_per_second",
        "test.accuracy",
    }
