import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from lockstep.catalog import events, status
from lockstep.catalog.run import Run
from lockstep.errors import UsageError

HOLDER = """
import sys, time
from pathlib import Path
from lockstep.catalog import events, status
from lockstep.catalog.run import Run
run = Run(Path(sys.argv[1]))
try:
    status.hold(run)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(2)
events.append(run, "created")
events.append(run, "started", attempt=1, process=status.process_identity())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


@pytest.fixture
def holder(run):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def started(run, **changes):
    events.append(run, "created")
    events.append(run, "started", attempt=1, process={**status.process_identity(), **changes})


def test_a_held_run_is_running_and_a_killed_one_is_killed(run, holder):
    found = status.of(run)
    assert (found.word, found.attempt, found.pid) == ("running", 1, holder.pid)
    assert (run.live.stat().st_mode & 0o777, run.lock.stat().st_mode & 0o777) == (0o700, 0o600)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    found = status.of(run)
    assert (found.word, found.cause) == ("killed", "process gone")
    assert str(holder.pid) in found.message


def test_a_second_starter_is_refused_and_names_the_first(run, holder):
    with pytest.raises(UsageError, match=rf"running already \(pid {holder.pid}\)"):
        status.hold(run)
    other = subprocess.run(
        [sys.executable, "-c", HOLDER, str(run.path)], capture_output=True, text=True, check=False
    )
    assert other.returncode == 2 and other.stdout.startswith("UsageError")


def test_after_a_kill_the_lock_is_free_again(run, holder):
    holder.kill()
    holder.wait()
    descriptor = status.hold(run)
    assert status.of(run).word == "running"
    status.release(run, descriptor)
    assert not run.live.exists()
    assert not list(run.path.glob(".live*"))


def test_what_a_killed_process_left_in_the_live_folder_goes_at_the_next_start(run, holder):
    (run.live / "rendezvous").write_text("stale")
    (run.live / "scratch").mkdir()
    (run.live / "scratch" / "file").write_text("stale")
    (run.path / ".live.0123").mkdir()
    holder.kill()
    holder.wait()
    descriptor = status.hold(run)
    assert [path.name for path in run.live.iterdir()] == ["lock"]
    assert not list(run.path.glob(".live.*"))
    os.close(descriptor)


def test_of_many_starters_at_once_one_wins(run):
    script = HOLDER.replace("time.sleep(60)", "sys.stdin.read()")
    command = [sys.executable, "-c", script, str(run.path)]
    starters = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    first_words = [starter.stdout.readline().split()[0] for starter in starters]
    for starter in starters:
        starter.communicate()
    assert sorted(first_words) == ["UsageError"] * 5 + ["held"]


def test_a_lock_in_a_folder_that_is_being_removed_is_not_taken(run):
    first = status.hold(run)
    descriptor = status._open_lock(run)
    status.release(run, first)
    assert not status._still_in_place(run, descriptor)
    os.close(descriptor)
    os.close(status.hold(run))


def test_a_child_that_is_executed_does_not_inherit_the_lock(run):
    descriptor = status.hold(run)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    os.close(descriptor)
    assert status.of(run).word != "running"
    child.kill()
    child.wait()


@pytest.mark.parametrize("word", ["succeeded", "failed", "interrupted"])
def test_the_recorded_end_of_the_last_attempt_wins_over_a_held_lock(run, word):
    started(run)
    descriptor = status.hold(run)
    events.append(run, "finished", status=word, cause="signal", message="rank 1: SIGSEGV", rank=1)
    events.append(run, "sealed", manifest_sha256="0" * 64)
    found = status.of(run)
    assert (found.word, found.cause, found.message, found.rank) == (word, "signal", "rank 1: SIGSEGV", 1)
    assert found.started and found.finished and found.started <= found.finished
    os.close(descriptor)
    assert status.of(run) == found


def test_an_attempt_that_began_after_the_end_counts_and_its_death_too(run):
    started(run)
    events.append(run, "finished", status="interrupted", cause="SIGINT", message=None, rank=None)
    process = {**status.process_identity(), "pid": 2**22 + 5, "start_ticks": 1}
    events.append(run, "started", attempt=2, process=process)
    found = status.of(run)
    assert (found.word, found.attempt, found.finished) == ("killed", 2, None)


def test_a_pid_that_was_given_to_another_process_is_no_sign_of_life(run):
    started(run, start_ticks=1)
    assert (status.of(run).word, status.of(run).cause) == ("killed", "process gone")


def test_a_restart_of_the_machine_is_told_apart(run):
    started(run, boot_id="another")
    assert (status.of(run).word, status.of(run).cause) == ("killed", "machine restarted")


def test_another_host_is_unknown(run):
    started(run, host="elsewhere")
    assert (status.of(run).word, status.of(run).cause) == ("unknown", "another host")
    assert "elsewhere" in status.of(run).message


def test_a_copy_of_a_running_run_is_not_running(run, holder, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    assert status.of(Run(tmp_path / "copy")).word == "unknown"
    holder.kill()
    holder.wait()
    assert status.of(Run(tmp_path / "copy")).word == "killed"


def test_a_run_that_died_before_it_started_is_killed(run):
    events.append(run, "created")
    assert status.of(run).word == "killed"


@pytest.mark.parametrize("process", [None, 3, [], {}, {"pid": "x"}, {"pid": True, "host": 7}, {"pid": -1}])
def test_hostile_events_never_raise(run, process):
    run.events.write_text(
        json.dumps({"event": "started", "previous": "", "attempt": "many", "process": process, "time": 5})
        + "\n"
        + json.dumps({"event": "finished", "previous": "", "status": ["succeeded"], "rank": "x"})
        + "\n"
    )
    assert status.of(run).word in ("killed", "unknown")


def test_a_link_in_place_of_the_live_folder_is_refused(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    run.live.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="no link"):
        status.hold(run)
    assert not list((tmp_path / "elsewhere").iterdir())
