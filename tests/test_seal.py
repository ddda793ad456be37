import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.catalog.seal import seal, verify_folder, verify_seal, write_manifest
from lockstep.errors import LockstepError
from lockstep.files import sha256_of

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FILES = {
    "model.safetensors": b"weights" * 50,
    "optimizer.safetensors": b"moments" * 60,
    "state.json": b'{"step": 120}\n',
    "deep/er/empty": b"",
    "deep/näme with space": b"\0\xff",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step-00000120"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    for name, content in FILES.items():
        path = run.checkpoints / "step-00000120" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(run.checkpoints / "step-00000120")
    run.logs.mkdir()
    run.rank_log(0).write_text("epoch 1\n")
    run.live.mkdir(mode=0o700)
    (run.live / "lock").write_text("1\n")
    events.append(run, "created", run_id=run.run_id)
    events.append(run, "started", attempt=1)
    events.append(run, "finished", status="succeeded")
    return run


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".live" not in path.parts)


def test_an_untouched_folder_verifies_wherever_it_lies(folder, tmp_path):
    digests = write_manifest(folder)
    assert verify_folder(folder) == []
    assert digests == {name: sha256_of(folder / name) for name in [*FILES, "manifest.json"]}
    shutil.copytree(folder, tmp_path / "copy")
    folder.rename(tmp_path / "moved")
    assert verify_folder(tmp_path / "copy") == verify_folder(tmp_path / "moved") == []


@MANY
@given(st.data())
def test_any_flipped_byte_of_any_file_of_a_checkpoint_is_found(folder, data):
    write_manifest(folder)
    path = data.draw(st.sampled_from([path for path in files_of(folder) if path.stat().st_size]))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
    findings = verify_folder(folder)
    path.write_bytes(content)
    assert findings
    if path.name != "manifest.json":
        assert len(findings) == 1 and findings[0].startswith(str(path.relative_to(folder)))


@MANY
@given(st.data())
def test_any_flipped_byte_of_any_file_of_a_sealed_run_is_found(run, data):
    if not run.manifest.exists():
        seal(run)
    path = data.draw(st.sampled_from([path for path in files_of(run.path) if path.stat().st_size]))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
    findings = verify_seal(run)
    path.write_bytes(content)
    assert findings, (path, position, flip)
    assert verify_seal(run) == []


@MANY
@given(st.data())
def test_any_truncation_of_any_file_of_a_sealed_run_is_found(run, data):
    if not run.manifest.exists():
        seal(run)
    path = data.draw(st.sampled_from([path for path in files_of(run.path) if path.stat().st_size]))
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    findings = verify_seal(run)
    path.write_bytes(content)
    assert findings


def test_missing_added_and_swapped_files_are_named(folder):
    write_manifest(folder)
    model, optimizer = folder / "model.safetensors", folder / "optimizer.safetensors"
    model.rename(folder / "aside")
    optimizer.rename(model)
    (folder / "aside").rename(optimizer)
    assert verify_folder(folder) == [
        "model.safetensors holds what the manifest has for optimizer.safetensors: the two were swapped",
        "optimizer.safetensors holds what the manifest has for model.safetensors: the two were swapped",
    ]
    model.unlink()
    (folder / "extra").write_text("")
    assert verify_folder(folder)[:2] == [
        "extra is not in the manifest: it was added",
        "model.safetensors is missing",
    ]


def test_a_truncated_file_is_told_with_its_lengths(folder):
    write_manifest(folder)
    (folder / "state.json").write_bytes(b"{")
    assert verify_folder(folder) == [f"state.json has 1 bytes instead of {len(FILES['state.json'])}"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"algorithm": "md5", "files": {}}',
        b'{"algorithm": "sha256", "files": {"../x": 3}}',
    ],
)
def test_a_manifest_that_is_none_is_a_finding_and_no_traceback(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert len(verify_folder(folder)) == 1
    (folder / "manifest.json").unlink()
    assert verify_folder(folder) == ["manifest.json is missing"]


def test_a_path_that_leads_out_of_the_folder_is_never_opened(folder):
    write_manifest(folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["../secret"] = manifest["files"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    (folder.parent / "secret").write_bytes(FILES["state.json"])
    assert verify_folder(folder) == ["../secret is missing"]


def test_links_are_refused_by_the_seal_and_reported_later(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(LockstepError, match=r"link is a symbolic link"):
        write_manifest(folder)
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(LockstepError, match=r"pipe is not a plain file"):
        write_manifest(folder)
    (folder / "pipe").unlink()
    write_manifest(folder)
    (folder / "state.json").rename(tmp_path / "state.json")
    (folder / "state.json").symlink_to(tmp_path / "state.json")
    assert verify_folder(folder) == ["state.json is a link or no plain file, and was a file"]


def test_the_seal_covers_all_but_itself_the_history_and_what_lives_with_the_run(run):
    digest = seal(run)
    manifest = json.loads(run.manifest.read_bytes())
    expected = {str(path.relative_to(run.path)) for path in files_of(run.path)}
    assert set(manifest["files"]) == expected - {"manifest.json", "events.jsonl"}
    history = run.events.read_bytes()
    lines = history.splitlines(keepends=True)
    assert manifest["events"]["bytes"] == sum(map(len, lines[:-1]))
    assert json.loads(lines[-1])["event"] == "sealed"
    assert json.loads(lines[-1])["manifest_sha256"] == digest == sha256_of(run.manifest)
    shutil.rmtree(run.live)
    assert verify_seal(run) == []


def test_a_seal_after_a_torn_history_verifies(run):
    run.events.write_bytes(run.events.read_bytes() + b'{"event": "warn')
    seal(run)
    assert verify_seal(run) == []


def test_the_manifest_of_an_earlier_attempt_is_kept(run):
    seal(run)
    first = run.manifest.read_bytes()
    events.append(run, "started", attempt=2)
    events.append(run, "finished", status="succeeded")
    run.rank_log(0).write_text("epoch 1\nepoch 2\n")
    seal(run)
    assert (run.path / "manifest.attempt-1.json").read_bytes() == first
    assert run.manifest.read_bytes() != first
    assert verify_seal(run) == []
    events.append(run, "started", attempt=3)
    seal(run)
    assert (run.path / "manifest.attempt-1.json").read_bytes() == first
    assert (run.path / "manifest.attempt-2.json").is_file()
    assert verify_seal(run) == []


def test_known_digests_are_not_taken_again(run, monkeypatch):
    known = {"logs/rank-0.log": sha256_of(run.rank_log(0))}
    from lockstep.catalog import manifest

    read = []
    original = manifest.digest_of_file
    monkeypatch.setattr(
        manifest,
        "digest_of_file",
        lambda path, durable=False: read.append(path.name) or original(path, durable),
    )
    seal(run, known)
    assert "rank-0.log" not in read and "state.json" in read
    assert verify_seal(run) == []


def test_the_manifest_comes_last_and_every_file_is_on_disk_before_it(folder, monkeypatch):
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_manifest(folder)
    position = next(index for index, name in enumerate(synced) if "manifest.json" in name)
    assert {str(folder / name) for name in FILES} <= set(synced[:position])
