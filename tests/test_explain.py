import json
import os
import shutil

import pytest

import sample_run
from families import make, safetensors
from forging import edit_json, rewrite
from lockstep.catalog import events, exports, tombstones
from lockstep.catalog.manifest import write_manifest
from lockstep.cli import export as export_command
from lockstep.cli import main


def lockstep(capsys, catalog, *words):
    code = main(["explain", *map(str, words), "--catalog", str(catalog)])
    written = capsys.readouterr()
    assert "Traceback" not in written.err
    return code, written.out + written.err


def found(capsys, catalog, path):
    code, text = lockstep(capsys, catalog, path, "--json")
    value = json.loads(text)
    assert code == (0 if value["held_by"] else 1)
    return value


@pytest.fixture
def family(tmp_path):
    """grandparent -> parent -> child, and a stranger."""
    catalog = tmp_path / "catalog"
    grandparent = make(catalog, "grandparent", 1)
    parent = make(catalog, "parent", 2, grandparent)
    child = make(catalog, "child", 3, parent)
    return grandparent, parent, child, make(catalog, "stranger", 9)


def test_a_checkpoint_found_anywhere_leads_to_its_run_its_step_and_its_whole_ancestry(
    family, tmp_path, capsys
):
    child = family[2]
    away = tmp_path / "downloads" / "model (1).safetensors"
    away.parent.mkdir()
    shutil.copy(child.checkpoints / "step-00000020" / "model.safetensors", away)
    value = found(capsys, child.catalog, away)
    (holder,) = value["held_by"]
    assert (holder["run_id"], holder["made"], holder["step"], holder["status"]) == (
        "child",
        True,
        20,
        "succeeded",
    )
    assert holder["files"] == {"checkpoints/step-00000020/model.safetensors": "there, as it was"}
    assert holder["code"]["commit"] == sample_run.provenance()["git"]["commit"]
    assert holder["patch_file"] == str(child.patch) and holder["data"]["identity"] == "d" * 64
    assert holder["packages"]["torch"] == "2.13.0" and holder["machine"]["host"] == "bench-1"
    assert [(each["run_id"], each["checkpoint"], each["agrees"]) for each in holder["ancestry"]] == [
        ("parent", "step-00000020", True),
        ("grandparent", "step-00000020", True),
    ]
    code, text = lockstep(capsys, child.catalog, away)
    assert code == 0 and "child made it (tag tag of child)" in text and "resumed from grandparent" in text


def test_every_kind_of_file_leads_to_its_run(family, tmp_path, capsys):
    run = family[3]
    kinds = {
        run.model: (20, run.model.name),
        run.checkpoints / "step-00000010": (10, "checkpoints/step-00000010/manifest.json"),
        run.checkpoints / "step-00000010" / "manifest.json": (10, "checkpoints/step-00000010/manifest.json"),
        run.manifest: (None, "manifest.json"),
        run.events: (None, "events.jsonl"),
        run.path: (None, "manifest.json"),
        run.results: (None, run.results.name),
    }
    for path, (step, name) in kinds.items():
        away = tmp_path / "away" / f"copy-{path.name}"
        away.parent.mkdir(exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, away)
        (holder,) = found(capsys, run.catalog, away)["held_by"]
        assert (holder["run_id"], holder["step"]) == ("stranger", step), path
        assert name in holder["files"], path


def test_who_made_it_comes_before_who_began_with_it_and_all_who_share_it_are_named(family, capsys):
    parent = family[1]
    value = found(capsys, parent.catalog, parent.checkpoints / "step-00000020" / "model.safetensors")
    assert [(each["run_id"], each["made"], each["step"]) for each in value["held_by"]] == [
        ("parent", True, 20),
        ("child", False, 20),
    ]
    value = found(capsys, parent.catalog, parent.data / "train.safetensors")
    assert {each["run_id"] for each in value["held_by"]} == {"grandparent", "parent", "child", "stranger"}
    assert not any(each["made"] for each in value["held_by"])


def test_an_unsealed_run_is_searched_by_its_checkpoints_and_by_hash(tmp_path, capsys):
    run = make(tmp_path / "catalog", "killed", sealed=False)
    for path in (run.checkpoints / "step-00000010" / "model.safetensors", run.model, run.provenance):
        shutil.copy(path, tmp_path / "copy")
        (holder,) = found(capsys, run.catalog, tmp_path / "copy")["held_by"]
        assert (holder["run_id"], holder["status"]) == ("killed", "killed")


def test_what_was_written_after_the_last_seal_is_found_too(tmp_path, capsys):
    run = make(tmp_path / "catalog", "r")
    events.append(run, "started", attempt=2)
    run.metrics_file(0, 2).write_text("new")
    (holder,) = found(capsys, run.catalog, run.metrics_file(0, 2))["held_by"]
    assert list(holder["files"]) == ["metrics/rank-0.attempt-2.jsonl"]


def test_a_file_that_has_changed_or_gone_from_its_run_is_said_to_have(tmp_path, capsys):
    run = make(tmp_path / "catalog", "r")
    shutil.copy(run.model, tmp_path / "model.pt")
    rewrite(run.model, "other")
    name = "distributed_model_checkpoint.pt"
    assert found(capsys, run.catalog, tmp_path / "model.pt")["held_by"][0]["files"] == {name: "changed since"}
    run.model.unlink()
    assert found(capsys, run.catalog, tmp_path / "model.pt")["held_by"][0]["files"] == {
        name: "missing by now"
    }


def test_a_removed_run_still_answers_from_its_tombstone(family, tmp_path, capsys):
    grandparent, parent, child, _ = family
    shutil.copytree(child.checkpoints / "step-00000010", tmp_path / "kept")
    for run in (grandparent, child):
        tombstones.write(run.catalog, tombstones.make(run, {"older_than": "30d"}), run.run_id)
        shutil.rmtree(run.path)
    for path in (tmp_path / "kept", tmp_path / "kept" / "model.safetensors"):
        (holder,) = found(capsys, parent.catalog, path)["held_by"]
        assert (holder["run_id"], holder["step"], holder["status"]) == ("child", 10, "collected")
        assert holder["code"]["commit"] and holder["packages"]["torch"] == "2.13.0"
        ancestors = [(each["run_id"], each["status"], each["agrees"]) for each in holder["ancestry"]]
        assert ancestors == [("parent", "succeeded", True), ("grandparent", "collected", True)]


def test_a_parent_whose_checkpoint_is_another_one_now_is_told(family, capsys):
    _, parent, child, _ = family
    shutil.rmtree(parent.path)
    make(child.catalog, "parent", 77)
    code, text = lockstep(capsys, child.catalog, child.model)
    assert code == 0 and "WHICH IS ANOTHER ONE NOW" in text


def test_parents_in_a_circle_end(tmp_path, capsys):
    one = make(tmp_path / "catalog", "one")
    two = make(tmp_path / "catalog", "two", 2, one)
    line = one.events.read_bytes().replace(b'"parent": null', b'"parent": {"run_id": "two"}')
    rewrite(one.events, line)
    (holder,) = found(capsys, one.catalog, two.model)["held_by"]
    assert [each["run_id"] for each in holder["ancestry"]] == ["one"]


def test_a_file_that_no_run_holds_says_so_with_exit_status_one(family, tmp_path, capsys):
    (tmp_path / "own.bin").write_bytes(b"nobody's")
    code, text = lockstep(capsys, family[0].catalog, tmp_path / "own.bin")
    assert code == 1 and "holds these bytes" in text
    assert lockstep(capsys, tmp_path / "no catalog", tmp_path / "own.bin")[0] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "renamed.safetensors"])
def test_a_cut_a_longer_and_a_changed_copy_name_the_file_they_were_made_from(family, tmp_path, capsys, name):
    whole = (family[2].checkpoints / "step-00000010" / "model.safetensors").read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 8
    changed[-3] ^= 8
    copies = {"cut": whole[:-1000], "longer": whole + b"more", "changed": bytes(changed)}
    for how, content in copies.items():
        (tmp_path / name).write_bytes(content)
        value = found(capsys, family[2].catalog, tmp_path / name)
        similar = value["similar"]
        assert (similar["how"], similar["run_id"]) == (how, "child")
        assert similar["file"] == "checkpoints/step-00000010/model.safetensors"
    assert similar["different_bytes"] == 2 and similar["first_difference"] == len(whole) - 5
    assert similar["tensor"] == "second.weight"
    code, text = lockstep(capsys, family[2].catalog, tmp_path / name)
    assert code == 1 and "2 bytes differ" in text and "in tensor second.weight" in text


def test_a_checkpoint_folder_that_was_changed_says_which_file(family, tmp_path, capsys):
    shutil.copytree(family[2].checkpoints / "step-00000010", tmp_path / "step-00000010")
    rewrite(tmp_path / "step-00000010" / "model.safetensors", safetensors(5))
    value = found(capsys, family[2].catalog, tmp_path / "step-00000010")
    assert value["held_by"][0]["run_id"] == "child"
    assert value["findings"] == ["model.safetensors holds other bytes than were written"]


def export(run, target, *words):
    assert main(["export", str(run.path), "--format", "safetensors", "--output", str(target), *words]) == 0
    return target


def test_exported_weights_lead_to_the_checkpoint_that_has_the_same_tensors(family, tmp_path, capsys):
    run = family[2]
    value = export(run, tmp_path / "ex.safetensors", "--step", "10").read_bytes()
    capsys.readouterr()
    code, text = lockstep(capsys, run.catalog, tmp_path / "ex.safetensors")
    assert code == 0 and "export of checkpoint step-00000010 of run child" in text
    assert "all 2 tensors are the same" in text and "from        resumed from parent" in text
    rewrite(tmp_path / "ex.safetensors", value[:-1] + bytes([value[-1] ^ 1]))
    code, text = lockstep(capsys, run.catalog, tmp_path / "ex.safetensors", "--json")
    said = json.loads(text)["exported"]
    assert code == 1 and not said["same"] and said["named"] == ["second.weight"] and said["step"] == 10
    code, text = lockstep(capsys, run.catalog, tmp_path / "ex.safetensors")
    assert code == 1 and "does not hold" in text and "1 of 2 tensors differ" in text


def test_exported_weights_are_told_from_slices_and_from_the_average(family, tmp_path, capsys):
    folder = family[3].checkpoints / "step-00000020"
    average = safetensors(77)
    start = 8 + int.from_bytes(average[:8], "little")
    names = {b"first.weight": b"first.weight/ema", b"second.weight": b"second.weight/ema"}
    header = average[8:start]
    for name, longer in names.items():
        header = header.replace(name, longer)
    (folder / "optimizer.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + average[start:]
    )
    (folder / "model.safetensors").unlink()
    for rank in range(2):  # each has half of the rows
        place = {"shape": [4, 6], "offsets": [0, 3 * rank]}
        words = {
            "__metadata__": {"slices": json.dumps({"first.weight": place})},
            "first.weight": {"dtype": "U8", "shape": [4, 3], "data_offsets": [0, 12]},
        }
        text = json.dumps(words).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(range(12 * rank, 12 * rank + 12))
        (folder / f"model-{rank:05d}-of-00002.safetensors").write_bytes(content)
    write_manifest(folder)
    for words, of in (((), "weights"), (("--ema",), "moving average of the weights")):
        path = export(family[3], tmp_path / "ex.safetensors", *words)
        capsys.readouterr()
        code, text = lockstep(capsys, family[3].catalog, path, "--json")
        said = json.loads(text)["exported"]
        assert (code, said["same"], said["of"]) == (0, True, of)


@pytest.mark.parametrize(
    "run_id, name, why",
    [
        ("nobody", "step-00000010", "no such run"),
        ("child", "step-00000011", "no such checkpoint"),
        ("../catalog/child", "step-00000010", "no names"),
        ("child", "../../child/checkpoints/step-00000010", "no names"),
        ("child", "step-00000010/.", "no names"),
        ("linked", "step-00000010", "no such run"),
        ("child", "step-00000020", "not what was written"),
        ("\x1b[31m\u202e", "step-00000010", "no such run"),
    ],
)
def test_what_a_header_says_of_itself_leads_nowhere_else(family, tmp_path, capsys, run_id, name, why):
    run = family[2]
    (run.catalog / "linked").symlink_to(run.path)
    rewrite(run.checkpoints / "step-00000020" / "model.safetensors", safetensors(5))
    content = safetensors(99)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"run_id": run_id, "checkpoint": name}}
    text = json.dumps(header).encode()
    (tmp_path / "ex.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    code, text = lockstep(capsys, run.catalog, tmp_path / "ex.safetensors")
    assert code == 1 and why in text and text.replace("\n", "").isprintable()


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("removed", [False, True])
def test_exports_lead_to_their_run_by_the_note_that_was_made_of_them(
    family, tmp_path, capsys, form, removed, monkeypatch
):
    monkeypatch.setattr(
        export_command, "_as_pt", lambda source, target: target.write_bytes(source.read_bytes()[::-1])
    )
    run, file = family[2], tmp_path / f"weights.{form}"
    assert main(["export", str(run.path), "--format", form, "--output", str(file), "--step", "10"]) == 0
    if removed:
        assert main(["gc", "--catalog", str(run.catalog), "--tag", "tag of child", "--apply"]) == 0
    capsys.readouterr()
    code, text = lockstep(capsys, run.catalog, file)
    assert code == 0 and "export of checkpoint step-00000010 of run child" in text
    assert "from        resumed from parent" in text
    assert ("status      collected" in text) == removed
    file.write_bytes(file.read_bytes() + b" ")
    assert lockstep(capsys, run.catalog, file)[0] == 1


@pytest.mark.parametrize("change", [
    {"run_id": "../child"}, {"checkpoint": "../x"}, {"sha256": "0" * 64}, {"manifest_sha256": 3}, {"of": "\x1b[31m"},
    {"tensors": "<b>"}, {"run_id": "nobody"}, {"written": None}, {"tensors": -5}, {"checkpoint": "step-00000020"},
])  # fmt: skip
def test_a_forged_note_of_an_export_leads_nowhere(family, tmp_path, capsys, change):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"PK weights")
    exports.note(family[2], family[2].checkpoints / "step-00000010", file, exports.WEIGHTS, 2)
    (path,) = (family[2].catalog / ".exports").iterdir()
    assert lockstep(capsys, family[2].catalog, file)[0] == 0
    edit_json(path, lambda said: said.update(change))
    status, text = lockstep(capsys, family[2].catalog, file)
    assert status == 1
    assert "export of" not in text or "neither a record nor a tombstone" in text
    assert text.replace("\n", "").isprintable() and "status" not in text


def test_a_pt_file_that_no_run_holds_says_what_was_not_tried(family, tmp_path, capsys):
    (tmp_path / "ex.pt").write_bytes(b"PK")
    code, text = lockstep(capsys, family[0].catalog, tmp_path / "ex.pt")
    assert code == 1 and "not compared with any checkpoint" in text


def test_what_is_no_file_is_refused_and_nothing_hangs(family, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "empty", tmp_path / "nothing", "/dev/null"):
        assert lockstep(capsys, family[0].catalog, path)[0] == 2
    family[3].manifest.unlink()
    os.mkfifo(family[3].manifest)
    assert lockstep(capsys, family[0].catalog, family[0].model)[0] == 0


def many(catalog, count):
    """Folders with seals only, as large as real ones."""
    catalog.mkdir(parents=True)
    for number in range(count):
        folder = catalog / f"run-{number:05d}"
        folder.mkdir()
        files = {}
        for index in range(40):
            digest = f"{number:032x}{index:032x}"
            files[f"checkpoints/step-{index:08d}/model.safetensors"] = {"bytes": 340440, "sha256": digest}
        value = {
            "algorithm": "sha256",
            "files": files,
            "events": {"bytes": 0, "sha256": "0" * 64},
            "time": "x",
        }
        (folder / "manifest.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
        line = {"event": "created", "time": f"2026-11-20T00:00:{number:05d}", "previous": "0" * 64}
        seal_line = {"event": "sealed", "time": "x", "previous": "0" * 64, "manifest_sha256": "0" * 64}
        (folder / "events.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(seal_line) + "\n")


@pytest.mark.slow
def test_ten_thousand_runs_are_searched_for_a_file_that_none_or_one_of_them_holds(tmp_path, capsys):
    catalog = tmp_path / "catalog"
    many(catalog, 10_000)
    run = make(catalog, "needle", 5)
    (tmp_path / "own.bin").write_bytes(b"nobody's")
    for path, holders in ((run.model, 1), (tmp_path / "own.bin", 0)):
        assert len(found(capsys, catalog, path)["held_by"]) == holders
