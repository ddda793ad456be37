import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, Command, descendants
from forging import edit_json, forge, rewrite
from lockstep.catalog import events, verification
from lockstep.catalog.run import Run
from lockstep.catalog.seal import check, seal
from lockstep.catalog.verification import safetensors_file, torch_file
from lockstep.cli import main

SMALL = (
    "data=synthetic",
    "data.num_samples=101",
    "data.input_size=6",
    "data.num_classes=3",
    "model.hidden_sizes=[8]",
    "training.epochs=2",
    "training.global_batch_size=20",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the real command, with all that one leaves."""
    catalog = tmp_path_factory.mktemp("verify") / "catalog"
    Command(catalog).run("--run-id", "real", "--tag", "a tag", *SMALL)
    return Run((catalog / "real").resolve())


class Folder:
    """A run's folder that can be damaged in place and is restored from memory."""

    def __init__(self, run):
        self.run = run
        self.files = {path: (path.read_bytes(), path.stat().st_mode) for path in plain_files(run)}

    def restore(self):
        for path in sorted(self.run.path.rglob("*"), reverse=True):
            if path in self.files and stat.S_ISREG(path.lstat().st_mode):
                continue
            if path.is_dir() and not path.is_symlink():
                if not any(each.is_relative_to(path) for each in self.files) or path in self.files:
                    shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()
        for path, (content, mode) in self.files.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, content)
            if path.stat().st_mode != mode:
                path.chmod(mode)


def plain_files(run):
    return sorted(path for path in run.path.rglob("*") if path.is_file())


def write(path, content):
    """In place of what is there, and never through a link: the store has other names for the same bytes."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.fixture
def folder(trained):
    made = Folder(trained)
    yield made
    made.restore()
    assert findings(trained) == []


def findings(run):
    return [str(each) for each in verification.verify(run).findings]


# What may happen to a folder. Each returns the names of which one must be in a finding; None: nothing changed.


def flip(draw, folder):
    path = draw.choice([path for path in folder.files if folder.files[path][0]])
    content = bytearray(folder.files[path][0])
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    write(path, content)
    return [path]


def overwrite(draw, folder):
    path = draw.choice([path for path in folder.files if folder.files[path][0]])
    content = bytearray(folder.files[path][0])
    place, length = draw.randrange(len(content)), draw.randrange(1, 64)
    content[place : place + length] = draw.randbytes(len(content[place : place + length]))
    if content == folder.files[path][0]:
        return None
    write(path, content)
    return [path]


def cut(draw, folder):
    path = draw.choice([path for path in folder.files if folder.files[path][0]])
    write(path, folder.files[path][0][: draw.randrange(len(folder.files[path][0]))])
    return [path]


def lengthen(draw, folder):
    path = draw.choice(list(folder.files))
    more = draw.choice([b"\n", b"\0", b"{}\n", folder.files[path][0][-200:] or b"x", draw.randbytes(40)])
    write(path, folder.files[path][0] + more)
    return [path]


def remove(draw, folder):
    path = draw.choice(list(folder.files))
    path.unlink()
    return [path]


def rename(draw, folder):
    path = draw.choice(list(folder.files))
    new = path.with_name(draw.choice(["", ".", "x"]) + path.name + draw.choice(["2", ".bak", "~", " "]))
    path.rename(new)
    return [path, new]


def add(draw, folder):
    path = draw.choice([*{path.parent for path in folder.files}]) / draw.choice(
        [
            "new",
            ".hidden",
            "step-00000001",
            "x.json",
            "events.jsonl.1",
            "\u202egnp.exe",
            "a\nb",
            ".tmp-x",
            "1.json",
        ]
    )
    path.write_bytes(draw.choice([b"", b"x", draw.randbytes(30)]))
    return [path]


def add_folder(draw, folder):
    path = draw.choice([*{path.parent for path in folder.files}]) / draw.choice(["new", ".x", "signatures"])
    path.mkdir()
    return [path] if path.name != "signatures" else None


def swap(draw, folder):
    one, other = draw.sample(list(folder.files), 2)
    if folder.files[one][0] == folder.files[other][0]:
        return None
    write(one, folder.files[other][0])
    write(other, folder.files[one][0])
    return [one, other]


def take_others_place(draw, folder):
    one, other = draw.sample(list(folder.files), 2)
    if folder.files[one][0] == folder.files[other][0]:
        return None
    one.unlink()
    os.link(other, one)
    return [one]


def link(draw, folder):
    path = draw.choice(list(folder.files))
    path.unlink()
    aim = draw.choice(["/dev/zero", "/nowhere", str(folder.run.catalog), "../real/manifest.json"])
    path.symlink_to(aim)
    return [path]


def pipe(draw, folder):
    path = draw.choice(list(folder.files))
    path.unlink()
    os.mkfifo(path)
    return [path]


def become_a_folder(draw, folder):
    path = draw.choice(list(folder.files))
    path.unlink()
    path.mkdir()
    if draw.random() < 0.5:
        (path / "inside").write_bytes(b"x")
    return [path, path / "inside"]


def history_lines(folder):
    return folder.files[folder.run.events][0].splitlines(keepends=True)


def edit_lines(draw, folder):
    lines = history_lines(folder)
    place = draw.randrange(len(lines))
    match draw.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[place])
        case 2:
            other = draw.randrange(len(lines))
            if other == place:
                return None
            lines[place], lines[other] = lines[other], lines[place]
        case 3:
            lines = lines[:place]
    write(folder.run.events, b"".join(lines))
    return [folder.run.events]


def edit_event(draw, folder):
    lines = history_lines(folder)
    place = draw.randrange(len(lines))
    event = json.loads(lines[place])
    key = draw.choice(list(event))
    event[key] = draw.choice(["x", 7, None, {}, "succeeded", "0" * 64])
    line = json.dumps(event).encode() + b"\n"
    if line == lines[place]:
        return None
    lines[place] = line
    write(folder.run.events, b"".join(lines))
    return [folder.run.events]


def remove_folder(draw, folder):
    path = draw.choice([path for path in {path.parent for path in folder.files} if path != folder.run.path])
    shutil.rmtree(path)
    return [path]


def rename_folder(draw, folder):
    path = draw.choice([path for path in {path.parent for path in folder.files} if path != folder.run.path])
    new = path.with_name(draw.choice(["step-00000007", "new", ".tmp-x"]))
    path.rename(new)
    return [path, new]


MUTATIONS = (
    flip, flip, flip, flip, overwrite, cut, cut, lengthen, remove, rename, add, add_folder, swap, link, pipe,
    take_others_place, become_a_folder, edit_lines, edit_event, edit_event, remove_folder, rename_folder,
)  # fmt: skip


def mutate_many(folder, count, seed):
    draw = random.Random(seed)
    done = 0
    while done < count:
        mutation = draw.choice(MUTATIONS)
        touched = mutation(draw, folder)
        if touched is not None:
            done += 1
            found = verification.verify(folder.run).findings
            names = [path.relative_to(folder.run.path).as_posix() for path in touched]
            named = [each for each in found if any(each.file.startswith(name) for name in names)]
            assert named, (seed, done, mutation.__name__, names, found[:5])
            folder.restore()


def test_no_random_mutation_of_a_real_run_is_missed_and_each_is_named(folder):
    mutate_many(folder, 150, 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_none_of_ten_thousand_random_mutations_of_a_real_run_is_missed(folder):
    mutate_many(folder, 10_000, 2)


# What no digest can find, because the digests were made anew: the files contradict each other.


def last_checkpoint(run):
    return max(run.checkpoints.glob("step-*"))


def change_first_tensor(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    rewrite(path, bytes(content))


def drop_a_step(run):
    lines = run.metrics_file(0).read_text().splitlines(keepends=True)
    rewrite(run.metrics_file(0), "".join(line for line in lines if '"step": 3,' not in line))


CONTRADICTIONS = {
    "provenance's run": (
        lambda run: edit_json(run.provenance, lambda value: value.update(run_id="other")),
        "provenance.json says the run is other",
    ),
    "the results' run": (
        lambda run: edit_json(run.results, lambda value: value.update(run_id="other")),
        "distributed_training_results.json says the run is other",
    ),
    "a parent only in provenance": (
        lambda run: edit_json(run.provenance, lambda value: value.update(parent={"run_id": "x"})),
        "provenance.json says the parent is",
    ),
    "uv.lock": (lambda run: rewrite(run.path / "uv.lock", "x"), "provenance.json says of uv.lock the digest"),
    "the plan's ranks": (
        lambda run: edit_json(run.plan, lambda value: value.update(world_size=7)),
        "distributed.json says world_size 7, and parameters.yaml says 2",
    ),
    "the plan's steps": (
        lambda run: edit_json(run.plan, lambda value: value.update(steps=9)),
        "distributed.json says 9 steps",
    ),
    "the seed": (
        lambda run: rewrite(run.parameters, run.parameters.read_text().replace("seed: 42", "seed: 43")),
        "state.json says seed 42, and parameters.yaml says 43",
    ),
    "the data's identity": (
        lambda run: edit_json(run.data / "data.json", lambda value: value["made_from"].update(seed=1)),
        "data/data.json has an identity that is not the digest",
    ),
    "the data": (
        lambda run: change_first_tensor(run.data / "test.safetensors"),
        "data/test.safetensors says by its digest",
    ),
    "samples": (
        lambda run: edit_json(run.results, lambda value: value["ranks"][1].update(samples=1)),
        "distributed_training_results.json says samples of rank 1: 1, and metrics says",
    ),
    "the accuracy": (
        lambda run: edit_json(
            run.results, lambda value: value["evaluation"]["final"]["test"].update(accuracy=1.0)
        ),
        "distributed_training_results.json says test accuracy: 1.0, and events.jsonl says",
    ),
    "a step cut out of the metrics": (drop_a_step, "says steps of rank 0: "),
    "a step's status": (
        lambda run: edit_json(run.run_log, lambda value: value["steps"]["train"].update(status="FAIL")),
        "run_log.json says step train ended with FAIL, and events.jsonl says succeeded",
    ),
    "a checkpoint's step": (
        lambda run: edit_json(last_checkpoint(run) / "state.json", lambda value: value.update(step=3)),
        "state.json says the step is 3, and the folder's name says step-",
    ),
    "who made a checkpoint": (
        lambda run: edit_json(
            last_checkpoint(run) / "state.json", lambda value: value["made_by"].update(run_id="x")
        ),
        "state.json says it was made by x, and events.jsonl says real",
    ),
    "weights": (
        lambda run: change_first_tensor(last_checkpoint(run) / "model.safetensors"),
        "distributed_model_checkpoint.pt has other bits of model tensor",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_each_other_are_named_even_under_a_new_seal(folder, name):
    change, expected = CONTRADICTIONS[name]
    if name == "uv.lock" and not (folder.run.path / "uv.lock").exists():
        pytest.skip("the checkout has no uv.lock, which the first uv run writes")
    change(folder.run)
    forge(folder.run)
    found = findings(folder.run)
    assert any(expected in each for each in found), found
    assert check(folder.run).findings == []  # the seal itself agrees


def test_a_history_that_contradicts_the_rest_is_named_even_under_a_new_seal(folder):
    def change(event):
        if event.get("event") == "step_finished" and event["step"] == "evaluate":
            event["status"] = "failed"

    forge(folder.run, change)
    assert "run_log.json says step evaluate ended with SUCCESS, and events.jsonl says failed" in findings(
        folder.run
    )


def test_a_run_under_another_name_is_told_of_and_not_accused(trained):
    moved = Run(trained.path.with_name("other"))
    trained.path.rename(moved.path)
    try:
        verdict = verification.verify(moved)
        assert verdict.findings == [] and verdict.notes[0].endswith("recorded as real")
    finally:
        moved.path.rename(trained.path)


# Checkpoints that cannot be loaded, or should not be.


def tensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "too short": b"1234",
    "a header beyond the file": tensors({}, length=1 << 40),
    "a header that is no JSON": tensors(b"{x"),
    "a header nested deeply": tensors(b'{"a":' + b"[" * 100_000),
    "an unknown dtype": tensors({"a": {**ONE, "dtype": "F31"}}, bytes(8)),
    "a shape that does not fit": tensors({"a": {**ONE, "shape": [3]}}, bytes(8)),
    "a negative size": tensors({"a": {**ONE, "shape": [-2]}}, bytes(8)),
    "a gap": tensors({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12)),
    "an overlap": tensors({"a": ONE, "b": ONE}, bytes(8)),
    "bytes at the end": tensors({"a": ONE}, bytes(9)),
    "bytes that are missing": tensors({"a": ONE}, bytes(7)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_cannot_be_loaded_is_named_without_torch(folder, name):
    path = last_checkpoint(folder.run) / "optimizer.safetensors"
    rewrite(path, BROKEN[name])
    forge(folder.run)
    expected = f"{path.relative_to(folder.run.path)} cannot be loaded: it "
    assert any(each.startswith(expected) for each in findings(folder.run))


def test_a_sound_header_gives_the_tensors_and_where_they_lie(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        tensors({"__metadata__": {"a": "b"}, "a": ONE, "b": {**ONE, "data_offsets": [8, 16]}}, bytes(16))
    )
    base = path.stat().st_size - 16
    found = safetensors_file.read_header(path)
    assert {name: (each.start - base, each.stop - base) for name, each in found.items()} == {
        "a": (0, 8),
        "b": (8, 16),
    }


def archive(path, pickle, **members):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", pickle)
        for name, content in members.items():
            file.writestr(f"x/data/{name.strip('_')}", content)


HOSTILE_PICKLES = {
    "a call": b"\x80\x02cposix\nsystem\nX\x06\0\0\0touch!\x85R.",
    "another class": b"\x80\x02cbuiltins\neval\n.",
    "a state": b"\x80\x02}}b.",
    "an instance": b"\x80\x02(iposix\nsystem\n.",
    "a name put together": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02\x85\x85.",
    "no pickle": b"\xff\xfe",
    "an unhashable key": b"\x80\x02}}}s.",
    "a mark that is missing": b"\x80\x02t.",
    "a list": b"\x80\x02].",
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_a_pt_file_that_is_more_than_tensors_is_named_and_never_unpickled(folder, name, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it was executed"))
    folder.run.model.unlink()
    archive(folder.run.model, HOSTILE_PICKLES[name])
    forge(folder.run)
    found = findings(folder.run)
    assert any(each.startswith("distributed_model_checkpoint.pt cannot be loaded: it ") for each in found), (
        found
    )


def test_a_compressed_member_or_one_that_is_missing_is_named(folder, tmp_path):
    with zipfile.ZipFile(folder.run.model) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
    for change in ("packed", "missing", "short"):
        with zipfile.ZipFile(tmp_path / change, "w") as file:
            for name, content in members.items():
                first = name.endswith("/data/0")
                if first and change == "missing":
                    continue
                packed = zipfile.ZIP_DEFLATED if first and change == "packed" else zipfile.ZIP_STORED
                file.writestr(name, content[:-1] if first and change == "short" else content, packed)
        with pytest.raises(torch_file.Broken, match="compressed" if change == "packed" else "data/0"):
            torch_file.Archive(tmp_path / change)


@pytest.mark.slow
def test_what_torch_writes_of_any_dtype_is_read_as_it_reads_it(tmp_path):
    import torch

    kinds = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    ]
    kinds += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    value = {str(kind): torch.zeros((2, 3), dtype=kind) for kind in kinds}
    value |= {
        "view": torch.arange(12.0).reshape(3, 4).t(),
        "none": None,
        "text": "x",
        "numbers": [1, 2.5, 1 << 40],
    }
    value |= {"empty": torch.empty(0), "scalar": torch.tensor(1.0), "large": list(range(70_000))}
    torch.save(value, tmp_path / "x.pt")
    found = torch_file.Archive(tmp_path / "x.pt")
    found.close()
    assert found.value.keys() == value.keys() and found.value["numbers"] == value["numbers"]
    for name, tensor in value.items():
        if isinstance(tensor, torch.Tensor):
            assert (found.value[name].size, found.value[name].stride) == (
                tuple(tensor.shape),
                tensor.stride(),
            )
            assert found.value[name].is_whole == (name != "view")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "provenance.json",
    "distributed.json",
    "distributed_training_results.json",
    "run_log.json",
    "data/data.json",
    "metrics/rank-0.jsonl",
)


def places(value, path=()):
    """Every path to a value in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_stands_in_a_record_verification_says_so_and_never_fails(folder, data):
    path = folder.run.path / data.draw(st.sampled_from(NAMES))
    first = folder.files[path][0].splitlines()[0] if path.suffix == ".jsonl" else folder.files[path][0]
    value = json.loads(first)
    *way, last = data.draw(st.sampled_from([each for each in places(value) if each]))
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(JSON)
    rewrite(path, json.dumps(data.draw(st.sampled_from([value, inner[last]]))) + "\n")
    found = verification.verify(folder.run).findings
    assert any(each.file == path.relative_to(folder.run.path).as_posix() for each in found)
    assert all(str(each).isprintable() for each in found)
    folder.restore()


def test_a_history_that_is_far_too_large_is_named_and_not_taken_in(folder):
    os.truncate(folder.run.events, 1 << 40)
    assert any(each.startswith("events.jsonl has more than") for each in findings(folder.run))
    folder.run.events.unlink()


# What cannot be proven is said.


def shortened(run, count):
    """The run as it was before its last events, unsealed."""
    lines = run.events.read_bytes().splitlines(keepends=True)
    rewrite(run.events, b"".join(lines[:-count]))
    run.manifest.unlink()


def test_an_unsealed_run_proves_its_checkpoints_and_says_what_it_cannot_prove(folder):
    shortened(folder.run, 2)
    verdict = verification.verify(folder.run)
    assert verdict.findings == [] and verdict.status == "killed" and not verdict.sealed
    assert any(each.startswith("checkpoints: 2") for each in verdict.proven)
    assert any("not sealed" in each for each in verdict.unproven)
    assert not any("byte for byte" in each for each in verdict.proven)
    change_first_tensor(last_checkpoint(folder.run) / "model.safetensors")
    found = findings(folder.run)
    assert found[0].endswith("/model.safetensors holds other bytes than were written")
    assert any("has other bits of model tensor" in each for each in found)


@pytest.mark.parametrize("name", ["parameters.yaml", "provenance.json"])
def test_parameters_and_provenance_of_a_run_that_died_unsealed_are_vouched_for_by_its_history(folder, name):
    shortened(folder.run, 2)
    assert any(
        "but its parameters, provenance, check" in each for each in verification.verify(folder.run).unproven
    )
    path = folder.run.path / name
    rewrite(path, path.read_bytes().replace(b"0", b"1", 1))
    assert f"{name} holds other bytes than those whose digest the history states" in findings(folder.run)
    path.unlink()
    assert any(each.startswith(f"{name} is missing or no plain file") for each in findings(folder.run))


def test_a_seal_that_is_not_told_of_in_the_history_is_a_finding(folder):
    lines = history_lines(folder)
    rewrite(folder.run.events, b"".join(lines[:-1]))
    assert any("does not tell of this manifest.json" in each for each in findings(folder.run))


def test_another_attempt_after_the_seal_of_a_run_that_succeeded_is_a_finding_and_covers_for_nothing(folder):
    run = folder.run
    events.append(run, "started", attempt=2, process={})
    rewrite(run.report, "x")
    found = findings(run)
    assert any("a run that succeeded, which gets no other attempt" in each for each in found)
    assert any(each.startswith("report.html") for each in found)
    assert not any("byte for byte" in each for each in verification.verify(run).proven)


@pytest.mark.parametrize("name", [".live/x", ".live.1/evil", "checkpoints/.tmp-y/z", ".tmp-y/z"])
def test_what_no_seal_covers_is_a_finding_or_said_to_be_uncovered(folder, name):
    path = folder.run.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    verdict = verification.verify(folder.run)
    top = name.partition("/")[0] if not name.startswith("checkpoints") else "checkpoints/.tmp-y"
    said = [str(each) for each in verdict.findings] + verdict.unproven
    assert any(top in each for each in said), said


def test_links_and_a_missing_input_are_findings_of_a_run_without_a_seal_as_well(folder, tmp_path):
    run = folder.run
    run.manifest.unlink()
    rewrite(run.events, b"".join(history_lines(folder)[:-1]))
    assert findings(run) == []
    run.rank_log(0).unlink()
    run.rank_log(0).symlink_to("/etc/hostname")
    run.parameters.unlink()
    shutil.rmtree(run.metrics)
    run.metrics.symlink_to(tmp_path)
    found = findings(run)
    for words in (
        "logs/rank-0.log is a symbolic link",
        "metrics is a symbolic link",
        "parameters.yaml is missing",
    ):
        assert any(each.startswith(words) for each in found), (words, found)
    run.metrics.unlink()


def test_what_follows_the_seal_and_is_no_attempt_is_a_finding(folder):
    events.append(folder.run, "warning", message="all is well")
    assert any("goes on after the seal" in each for each in findings(folder.run))


def test_bytes_with_a_second_name_elsewhere_are_pointed_at(folder, tmp_path):
    os.link(folder.run.results, tmp_path / "mine")
    verdict = verification.verify(folder.run)
    assert verdict.findings == []
    assert any(
        "distributed_training_results.json" in each and "hard link" in each for each in verdict.unproven
    )


def test_permissions_and_times_are_no_part_of_a_record(folder):
    folder.run.results.chmod(0o600)
    os.utime(folder.run.results, (0, 0))
    assert findings(folder.run) == []


# The command.


def verify(capsys, *words):
    status = main(["verify", *words])
    return status, capsys.readouterr().out


def test_the_command_says_good_or_bad_by_its_exit_status(folder, capsys):
    catalog = ("--catalog", str(folder.run.catalog))
    status, text = verify(capsys, "real", *catalog)
    assert status == 0 and "nothing was found against it" in text and "byte for byte" in text
    change_first_tensor(folder.run.metrics_file(0))
    status, text = verify(capsys, "latest", *catalog)
    assert status == 1 and "FOUND  metrics/rank-0.jsonl holds other bytes than were written" in text
    status, text = verify(capsys, str(folder.run.path), "--json")
    value = json.loads(text)
    assert status == 1 and not value["good"] and value["findings"][0]["file"] == "metrics/rank-0.jsonl"


def test_all_verifies_every_run_and_the_store_and_finds_runs_without_a_history(folder, capsys):
    catalog = folder.run.catalog
    words = ("--all", "--catalog", str(catalog))
    assert verify(capsys, *words)[0] == 0
    stored = next(path for path in (catalog / ".store").iterdir() if path.is_file())
    content = stored.read_bytes()
    (catalog / "empty").mkdir()
    rewrite(stored, b"x" + content[1:])
    (catalog / ".store" / "new").write_bytes(b"")
    try:
        status, text = verify(capsys, *words)
        assert status == 1 and "real  succeeded, sealed: good" in text
        assert f".store/{stored.name} does not hold the bytes of its digest" in text
        assert ".store/new is no stored file" in text and "empty has no events.jsonl" in text
    finally:
        rewrite(stored, content)
        (catalog / "empty").rmdir()
        (catalog / ".store" / "new").unlink()
    assert verify(capsys, *words)[0] == 0


def test_a_run_whose_history_was_taken_away_is_found_by_its_name_and_its_folder(folder, capsys):
    folder.run.events.unlink()
    for name in ("real", str(folder.run.path)):
        status, text = verify(capsys, name, "--catalog", str(folder.run.catalog))
        assert status == 1 and "FOUND  events.jsonl is missing or empty" in text
    assert main(["verify", "nothing", "--catalog", str(folder.run.catalog)]) == 2


def test_one_run_or_all_and_nothing_else(trained, capsys):
    for words in ([], ["real", "--all"], ["--all", "--anchor", "0" * 64], ["real", "--anchor", "x"]):
        assert main(["verify", *words, "--catalog", str(trained.catalog)]) == 2
    assert main(["verify", "real", "--signers", "/nowhere", "--catalog", str(trained.catalog)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_verifying_imports_neither_torch_nor_runnable(trained):
    code = (
        "import sys; from lockstep.cli import main; "
        f"status = main(['verify', 'real', '--catalog', {str(trained.catalog)!r}]); "
        "found = {'torch', 'runnable', 'pydantic', 'numpy'} & sys.modules.keys(); "
        "sys.exit(status or str(found) * bool(found) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_an_earlier_attempts_seal_is_kept_and_verified(folder):
    events.append(folder.run, "started", attempt=2, process={})
    events.append(folder.run, "finished", status="succeeded", cause=None, message=None, rank=None)
    seal(folder.run)
    assert findings(folder.run) == []
    change_first_tensor(folder.run.path / "manifest.attempt-1.json")
    forge(folder.run)
    assert any("manifest.attempt-1.json is the manifest of no seal" in each for each in findings(folder.run))


def test_no_rank_is_left_to_write_after_the_seal_of_a_run_that_was_stopped_before_its_first_step(
    server, tmp_path
):
    from lockstep import parameters
    from lockstep.catalog import status
    from lockstep.catalog.run import claim
    from lockstep.errors import Interrupted
    from lockstep.files import write_atomically
    from lockstep.orchestration import steps
    from lockstep.orchestration.display import Display
    from lockstep.orchestration.session import Session, active
    from training import SMALL as SMALL_SECTIONS

    wanted = parameters.read(None, SMALL_SECTIONS)
    run = claim(tmp_path / "catalog", "stopped")
    descriptor = status.hold(run)
    write_atomically(run.parameters, parameters.dump(wanted))
    value = wanted.to_value()
    session = Session(run, Display(quiet=True), ROOT, server)
    try:
        with active(session):
            steps.prepare_data(value["seed"], value["data"])
            steps.setup_distributed(**value)
            session.stop_signal = "SIGINT"  # it arrives while the ranks are starting
            with pytest.raises(Interrupted):
                steps.train(value["distributed"])
        children = {pid for pid in descendants(os.getpid()) if b"launchers.server" in command_of(pid)}
        assert len(children) == 1  # the server itself, and no rank
    finally:
        status.release(run, descriptor)


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
