import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT, wait_until
from families import make
from lockstep import linux
from lockstep.catalog import collect, events, status, store, verification
from lockstep.catalog.diagnosis import machine
from lockstep.catalog.run import Run, claim
from lockstep.catalog.seal import check
from lockstep.cli import main

OLD = time.time() - 2 * 86400


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """An empty catalog, on a machine that is quiet otherwise."""
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    for name in ("catalog", "shm", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path / "catalog"


def doctor(capsys, catalog, *words):
    code = main(["doctor", *words, "--catalog", str(catalog)])
    written = capsys.readouterr()
    assert "Traceback" not in written.err
    return code, written.out + written.err


def age(path):
    os.utime(path, (OLD, OLD), follow_symlinks=False)
    return path


def killed(catalog, run_id="k"):
    """A run that is not sealed, of a process that is gone."""
    run = make(catalog, run_id, sealed=False)
    process = status.process_identity() | {"start_ticks": 1}
    events.append(run, "started", attempt=1, process=process)
    return run


def snapshot(folder):
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size, path.lstat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_catalog_without_ailments_says_so(catalog, capsys):
    make(catalog, "one")
    killed(catalog)
    code, text = doctor(capsys, catalog)
    assert code == 0 and "nothing was left behind" in text


def ail(catalog):
    """One of everything that a death can leave, with the words that name it."""
    words = []
    run = killed(catalog)
    run.live.mkdir(mode=0o700)
    (run.live / "lock").write_text("1\n")
    (run.live / "board").write_bytes(bytes(100))
    words.append(".live: is left of a process that is gone")
    (run.path / ".tmp-run_log.json-x").write_text("{")
    (run.data / ".tmp-abc").mkdir()
    (run.data / ".tmp-abc" / "train.safetensors").write_bytes(b"half")
    (run.checkpoints / ".tmp-step").mkdir()
    (run.checkpoints / ".tmp-step" / "model.safetensors").write_bytes(b"half")
    words += [".tmp-run_log.json-x: a half-written file", ".tmp-step: a checkpoint that was not finished"]
    with run.events.open("ab") as file:
        file.write(b'{"event": "step_fin')
    words.append("events.jsonl: ends in the middle of a line")
    run.metrics_file(0).write_bytes(b'{"kind": "step"}\n{"kind": "st')
    words.append("rank-0.jsonl: ends in a torn line of 12 bytes")
    run.run_log.write_text('{"run_id": ')
    words.append("run_log.json: is no log of this run that can be read")
    age(claim(catalog, "empty").path)
    words.append("empty: was begun by a process that died at once")
    folder = store.folder(catalog)
    (folder / "identities").mkdir(parents=True)
    (folder / ("0" * 64)).write_bytes(b"other")
    words.append("does not hold the bytes of its digest")
    file = run.path / "new"
    file.write_bytes(b"data")
    (folder / store.put(catalog, file)).chmod(0o644)
    words.append("can be written to")
    age(folder / ("0" * 64)).with_name(".tmp-x").write_bytes(b"half")
    age(folder / ".tmp-x")
    words.append(".tmp-x: was left half-written")
    (folder / "identities" / "x.json").write_text(json.dumps({"files": {"train": {"sha256": "1" * 64}}}))
    words.append("x.json: names data that is not in the store")
    make(catalog, "gone").path.rename(catalog / f"{collect.REMOVING}gone-0123456789ab")
    words.append("a removal was cut short")
    shm, temporary = catalog.parent / "shm", catalog.parent / "tmp"
    (shm / "lockstep-1").write_bytes(b"x")
    age(shm / "lockstep-1")
    (temporary / "lockstep-abcd1234").mkdir()
    age(temporary / "lockstep-abcd1234")
    words += ["lockstep-1: is shared memory that no process uses", "lockstep-abcd1234: is a temporary folder"]
    return run, words


def test_everything_that_a_death_leaves_is_named_and_looking_changes_nothing(catalog, capsys):
    _, words = ail(catalog)
    before = snapshot(catalog.parent)
    code, text = doctor(capsys, catalog)
    assert code == 1 and snapshot(catalog.parent) == before
    for word in words:
        assert word in text
    assert text.count("[--fix mends it]") == len(text.splitlines())
    value = json.loads(doctor(capsys, catalog, "--json")[1])
    assert len(value["found"]) == len(text.splitlines()) and not value["done"]


def test_fix_mends_what_is_safe_says_what_it_did_and_nothing_remains(catalog, capsys):
    run, _ = ail(catalog)
    kept = {path: path.read_bytes() for path in run.checkpoints.glob("step-*/*")}
    history = run.events.read_bytes()
    code, text = doctor(capsys, catalog, "--fix")
    assert code == 0 and text.endswith("nothing remains\n"), text
    assert "cut the torn line of 12 bytes off" in text and "finished removing gone" in text
    assert {path: path.read_bytes() for path in kept} == kept
    assert run.events.read_bytes().startswith(history)  # a history is never rewritten
    assert check(run).findings == [] and status.of(run).word == "killed"
    assert run.metrics_file(0).read_bytes() == b'{"kind": "step"}\n'
    assert (run.path / "run_log.damaged.json").read_text() == '{"run_id": '
    assert not run.live.exists() and not (catalog / "empty").exists()
    assert (catalog / ".tombstones" / "gone.json").is_file()
    assert not list((catalog.parent / "shm").iterdir()) and not list((catalog.parent / "tmp").iterdir())
    assert not [path for path in catalog.rglob(".tmp-*")]
    before = snapshot(catalog.parent)
    assert doctor(capsys, catalog, "--fix")[0] == 0 and snapshot(catalog.parent) == before


def test_damage_that_cannot_be_mended_remains_and_is_the_exit_status(catalog, capsys):
    run = killed(catalog)
    (run.checkpoints / "step-00000020" / "model.safetensors").write_bytes(b"x")
    (run.checkpoints / "step-00000010" / "manifest.json").unlink()
    run.metrics_file(0).write_bytes(b'torn{\n{"kind": "step"}\n')
    run.events.write_bytes(run.events.read_bytes().replace(b"tag of k", b"tag of x"))
    code, text = doctor(capsys, catalog, "--fix")
    assert code == 1
    for word in (
        "step-00000020: a damaged checkpoint",
        "manifest.json is missing",
        "no JSON objects stand before others: 1",
    ):
        assert word in text
    assert "does not fit what stands above it" in text


def test_what_belongs_to_a_running_run_is_never_touched(catalog, capsys):
    run = killed(catalog)
    descriptor = status.hold(run)
    try:
        (run.checkpoints / ".tmp-step").mkdir()
        (run.path / ".tmp-x").write_text("half")
        run.metrics_file(0).write_bytes(b'{"kind"')
        with run.events.open("ab") as file:
            file.write(b'{"event"')
        before = snapshot(catalog)
        code, text = doctor(capsys, catalog, "--fix")
        assert code == 0 and "nothing was left behind" in text
        assert snapshot(catalog) == before and (run.checkpoints / ".tmp-step").is_dir()
    finally:
        status.release(run, descriptor)


def test_a_run_that_began_while_the_doctor_looked_is_left_alone(catalog, capsys):
    from lockstep.catalog.diagnosis import runs

    run = killed(catalog)
    (run.path / ".tmp-x").write_text("half")
    (found,) = list(runs.examine(run))
    descriptor = status.hold(run)
    try:
        assert "is running" in found.mend() and (run.path / ".tmp-x").exists()
    finally:
        status.release(run, descriptor)


def test_a_run_of_another_host_is_not_ours_to_mend(catalog, capsys):
    run = make(catalog, "away", sealed=False)
    events.append(run, "started", attempt=1, process={"pid": 1, "host": "elsewhere", "boot_id": "x"})
    (run.path / ".tmp-x").write_text("half")
    assert doctor(capsys, catalog, "--fix")[0] == 0 and (run.path / ".tmp-x").exists()


def test_young_files_and_those_of_other_programs_are_left_alone(catalog, capsys):
    make(catalog, "one")
    folder = store.folder(catalog)
    folder.mkdir(exist_ok=True)
    (folder / ".tmp-young").write_bytes(b"being written")
    claim(catalog, "young")
    temporary, shm = catalog.parent / "tmp", catalog.parent / "shm"
    for path in (
        temporary / "other-abcd1234",
        temporary / "lockstep-notes",
        shm / "psm_1234",
        shm / "torch_1_2",
    ):
        path.mkdir()
        age(path)
    (temporary / "lockstep-abcdefgh").mkdir()
    (temporary / "outside").mkdir()
    (temporary / "lockstep-linked00").symlink_to(temporary / "outside")
    code, _ = doctor(capsys, catalog, "--fix")
    assert code == 0 and len(list(temporary.iterdir())) == 5 and len(list(shm.iterdir())) == 2
    assert (folder / ".tmp-young").exists() and (catalog / "young").exists()


def test_a_temporary_folder_that_a_process_stands_in_is_left_alone(catalog, capsys):
    path = catalog.parent / "tmp" / "lockstep-abcd1234"
    path.mkdir()
    age(path)
    with subprocess.Popen(["sleep", "60"], cwd=path) as process:
        try:
            assert doctor(capsys, catalog, "--fix")[0] == 0 and path.is_dir()
        finally:
            process.kill()
    assert doctor(capsys, catalog, "--fix")[0] == 0 and not path.exists()


def test_a_torn_line_after_a_seal_is_not_closed_but_pointed_at(catalog, capsys):
    run = make(catalog, "one")
    with run.events.open("ab") as file:
        file.write(b'{"event": "sta')
    before = run.events.read_bytes()
    code, text = doctor(capsys, catalog, "--fix")
    assert code == 1 and "lockstep verify one" in text and run.events.read_bytes() == before


def test_a_half_written_file_that_was_sealed_is_part_of_the_record(catalog, capsys):
    run = make(catalog, "one")
    run.manifest.unlink()
    lines = run.events.read_bytes().splitlines(keepends=True)
    run.events.write_bytes(b"".join(lines[:-1]))
    (run.data / ".tmp-x").mkdir()
    (run.data / ".tmp-x" / "half").write_text("x")
    from lockstep.catalog.seal import seal

    seal(run)
    assert doctor(capsys, catalog, "--fix")[0] == 0
    assert check(run).findings == [] and (run.data / ".tmp-x" / "half").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_process_without_a_record_is_named_and_never_ended(catalog, capsys):
    run = killed(catalog)
    log = run.rank_log(0)
    # What a rank looks like: the server's command line, and its run's log held open.
    code = "import sys, time; file = open(sys.argv[2], 'ab'); time.sleep(120)"
    words = [sys.executable, "-c", code, "lockstep.launchers.server", str(log), str(os.getpid())]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            wait_until(
                lambda: any(str(log) in each.paths for each in machine.processes() if each.pid == process.pid)
            )
            status_code, text = doctor(capsys, catalog, "--fix")
            assert (
                status_code == 1 and f"process {process.pid}: works for run k, which no process holds" in text
            )
            descriptor = status.hold(run)
            assert doctor(capsys, catalog)[0] == 0  # it belongs to a running run
            status.release(run, descriptor)
            shutil.rmtree(run.path)
            status_code, text = doctor(capsys, catalog, "--fix")
            assert status_code == 1 and "works for run k, whose folder is gone" in text
            assert f"kill {process.pid}" in text and process.poll() is None
        finally:
            process.kill()
    assert doctor(capsys, catalog)[0] == 0


def test_a_real_death_leaves_what_the_doctor_mends(catalog, capsys):
    """A process that holds a run, killed in the middle of writing a checkpoint and a file."""
    code = (
        "import os, sys, time; from pathlib import Path; from lockstep.catalog import events, status; "
        "from lockstep.catalog.run import claim; from lockstep.files import temporary_beside; "
        "run = claim(Path(sys.argv[1]), 'k'); status.hold(run); "
        "events.append(run, 'created', run_id='k', tag=None, parent=None); "
        "events.append(run, 'started', attempt=1, process=status.process_identity()); "
        "(run.checkpoints / '.tmp-abc').mkdir(); "
        "manager = temporary_beside(run.results); manager.__enter__(); print('up', flush=True); time.sleep(120)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(catalog)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == b"up\n"
        assert doctor(capsys, catalog, "--fix")[0] == 0
        assert (catalog / "k" / "checkpoints" / ".tmp-abc").is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = Run((catalog / "k").resolve())
    code, text = doctor(capsys, catalog)
    assert code == 1 and text.count("[--fix mends it]") == 3
    assert doctor(capsys, catalog, "--fix")[0] == 0
    assert status.of(run).word == "killed" and verification.verify(run).findings == []
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "data",
        "events.jsonl",
        "logs",
        "metrics",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="zombies are looked up in /proc")
def test_a_process_that_ended_and_was_not_waited_for_counts_as_gone(catalog):
    process = subprocess.Popen(["true"])
    try:
        wait_until(lambda: linux.start_ticks(process.pid) is None)
    finally:
        process.wait()
