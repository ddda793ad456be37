"""Machines that lack something: what can be done without goes on, and the rest is said in a line with the file."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lockstep import files, linux
from lockstep.catalog import collect, events, status, store
from lockstep.catalog.run import claim
from lockstep.errors import UsageError
from lockstep.readiness import LEAST_DESCRIPTORS, require_descriptors

HERE = Path(__file__).resolve().parent
# What the C library answers where a file system or kernel does not have the call.
LACKING = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <sys/stat.h>
int fsync(int fd) { errno = EINVAL; return -1; }
int chmod(const char *path, mode_t mode) { errno = EPERM; return -1; }
int fchmod(int fd, mode_t mode) { errno = EPERM; return -1; }
int fchmodat(int fd, const char *path, mode_t mode, int flags) { errno = EPERM; return -1; }
int memfd_create(const char *name, unsigned flags) { errno = ENOSYS; return -1; }
"""


def refused(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_files_are_written_where_nothing_can_be_made_durable(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refused(number))
    files.write_atomically(tmp_path / "a", "content")
    run = claim(tmp_path, "r")
    events.append(run, "created", run_id="r")
    (tmp_path / "made").write_bytes(b"x")
    store.link(tmp_path, store.put(tmp_path, tmp_path / "made"), tmp_path / "linked")
    assert (tmp_path / "linked").read_bytes() == b"x" and len(events.read(run)) == 1


def test_a_disk_that_fails_is_still_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refused(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_atomically(tmp_path / "a", "content")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOTSUP])
def test_files_are_written_where_their_mode_cannot_be_set(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "chmod", refused(number))
    files.write_atomically(tmp_path / "a", "content")
    run = claim(tmp_path, "r")
    descriptor = status.hold(run)
    status.release(run, descriptor)
    (tmp_path / "made").write_bytes(b"x")
    assert store.put(tmp_path, tmp_path / "made")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_named_and_nothing_is_run(tmp_path, monkeypatch, number):
    monkeypatch.setattr(linux.fcntl, "fcntl", refused(number))
    monkeypatch.setattr(collect.fcntl, "flock", refused(number))
    run = claim(tmp_path, "r")
    with pytest.raises(UsageError, match=r"r/\.live/lock cannot be locked .*--catalog FOLDER"):
        status.hold(run)
    with pytest.raises(UsageError, match="cannot be locked"), collect.alone(tmp_path):
        pass


@pytest.mark.parametrize("lacking", ["nothing", "call", "permission", "wrapper"])
def test_memory_without_a_name_is_had_on_any_kernel(monkeypatch, lacking):
    if lacking == "wrapper":
        monkeypatch.delattr(os, "memfd_create")
    elif lacking != "nothing":
        number = errno.ENOSYS if lacking == "call" else errno.EPERM
        monkeypatch.setattr(os, "memfd_create", refused(number))
    descriptor = linux.anonymous_file("lockstep-test")
    try:
        os.ftruncate(descriptor, 100)
        other = os.open(f"/proc/{os.getpid()}/fd/{descriptor}", os.O_RDWR)  # as another rank finds it
        os.pwrite(other, b"x", 50)
        os.close(other)
        assert os.pread(descriptor, 1, 50) == b"x"
        assert not list(Path("/dev/shm").glob("lockstep-test*"))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("lacking", ["nothing", "call", "wrapper"])
def test_the_end_of_a_process_is_seen_on_any_kernel(monkeypatch, lacking):
    if lacking == "wrapper":
        monkeypatch.delattr(os, "pidfd_open")
    elif lacking == "call":
        monkeypatch.setattr(os, "pidfd_open", refused(errno.ENOSYS))
    with subprocess.Popen(["sleep", "60"]) as process:
        ticks = linux.start_ticks(process.pid)
        peer, stranger = linux.Peer(process.pid, ticks), linux.Peer(process.pid, ticks + 1)
        assert not peer.ended() and stranger.ended()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert peer.ended(), "also as a zombie"
        peer.close()
        stranger.close()


def limited(soft, hard):
    """What ``require_descriptors`` comes to in a process with such limits."""
    code = (
        "import resource\nfrom lockstep.errors import UsageError\nfrom lockstep.readiness import require_descriptors\n"
        "try:\n    require_descriptors('training')\nexcept UsageError as error:\n    print(error)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_few_descriptors_become_more_or_are_refused():
    require_descriptors("training")
    assert limited(16, 4096) == "1024\n"
    assert limited(16, 200) == "200\n"
    found = limited(16, 16)
    assert f"may open 16 files at once here (ulimit -n), needed: {LEAST_DESCRIPTORS}" in found
    assert "ulimit -n 1024" in found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_goes_through_where_fsync_chmod_and_memfd_are_lacking(command, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no compiler")
    (tmp_path / "lacking.c").write_text(LACKING)
    made = ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "lacking.so"), str(tmp_path / "lacking.c")]
    subprocess.run(made, check=True)
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "lacking.so")}
    job = ("data=synthetic", "data.num_samples=60", "data.input_size=8", "training.epochs=1")
    strategy = "distributed.strategy={name: allreduce, transport: shm}"
    output = command.run("--run-id", "r", *job, strategy, "training.global_batch_size=20", env=environment)
    assert "✓ report" in output
