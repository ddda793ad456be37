"""Promises about the whole: the surface of the commands, security, isolation, platforms, optional packages."""

import ast
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT, descendants
from lockstep import cli, linux
from lockstep.catalog import status
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_folder, verify_seal
from lockstep.errors import UsageError

SOURCES = sorted((ROOT / "src").rglob("*.py"))
JOB = ("data=synthetic", "data.num_samples=400", "training.global_batch_size=32")


def test_no_pickle_is_read_anywhere():
    """torch.load only with weights_only=True; no pickle, no yaml.load, no object collectives, no eval."""
    forbidden = re.compile(
        r"\bpickle\b|\bdill\b|yaml\.(unsafe_|full_)?load\b|_object_list|gather_object|broadcast_object"
    )
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        code = ast.unparse(tree)
        for node in ast.walk(tree):  # prose may name what code may not
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        code = ast.unparse(tree)
        assert not forbidden.search(code), f"{path}: {forbidden.search(code)}"
        for call in re.findall(r"torch\.load\([^)]*\)", code):
            assert "weights_only=True" in call, f"{path}: {call}"


SURFACE = {
    "run": "catalog check-only help parameters reproduces resume run-id tag",
    "resume": "accept catalog help keep run-id tag",
    "list": "catalog help json limit since sort status tag where",
    "show": "catalog follow help json lines",
    "diff": "catalog help json lines tolerance",
    "verify": "all anchor catalog help json signers",
    "seal": "anchor catalog help json sign",
    "reproduce": "catalog help json packages prove tolerance",
    "explain": "catalog help json",
    "report": "catalog help json open output",
    "ui": "catalog help open port",
    "gc": "apply catalog help json keep-last older-than status tag",
    "doctor": "catalog fix help json",
    "export": "catalog ema experiment format help json output step tracking-uri with-checkpoints",
    "collectives": "help",
}


def test_the_surface_of_the_command_line_is_frozen(capsys):
    assert set(cli.COMMANDS) == set(SURFACE)
    for name, options in SURFACE.items():
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        assert set(re.findall(r"--([a-z-]+)", capsys.readouterr().out)) == set(options.split()), name


def test_two_commands_are_all_the_set_up_and_what_they_write_stays_out_of_git():
    readme = (ROOT / "README.md").read_text()
    opening = readme.partition("```")[2].partition("```")[0].splitlines()
    assert [line.partition("#")[0].strip() for line in opening if line.strip()] == [
        "pip install uv && uv run pipeline.py",
        "uv run pytest",
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11"
    assert "torch>=2.11" in project["project"]["dependencies"]
    assert project["tool"]["uv"]["exclude-newer"]  # the same versions everywhere, without a lock in git
    assert "index" not in project["tool"]["uv"]
    assert {".catalog/", ".venv/", "uv.lock"} <= set((ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["shwo", "latest"], "show"),
        (["training.epochs=2"], "run"),
        (["\x1b[31mzzz"], None),
        (["-x", "verfy"], "verify"),
    ],
)
def test_a_word_that_is_no_command_is_told_with_what_is_and_what_was_meant(words, meant, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "allowed: run, resume, list" in said
    assert f"; did you mean lockstep {meant}?" in said if meant else "did you mean" not in said
    assert "\x1b" not in said


def listeners(pids):
    """(address, port) of every TCP socket that these processes listen on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
            except OSError:
                continue
            if found:
                inodes.add(found[1])
    result = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                result.append(fields[1])
    return result


def test_only_loopback_is_listened_on_and_no_port_is_asked_for(command):
    process = command.start_and_wait_for_step(
        "r", 5, *JOB, "training.epochs=3000", "distributed.world_size=3"
    )
    found = listeners(descendants(process.pid))
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert found, "gloo listens somewhere"
    for address in found:
        assert address.split(":")[0] in ("0100007F", "00000000000000000000000001000000"), address


def test_trainings_side_by_side_never_collide(command):
    jobs = [command.start("--run-id", f"r{i}", *JOB, "training.epochs=3", f"seed={i}") for i in range(2)]
    outputs = [process.communicate(timeout=110)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0] * 2, outputs
    for i in range(2):
        run = Run((command.catalog / f"r{i}").resolve())
        assert status.of(run).word == "succeeded"
        assert verify_seal(run) == []


@pytest.mark.parametrize(
    "words",
    [
        ("training.epoch=3",),
        ("--parameters", "none/none.yaml"),
        ("--run-id", "../x"),
        ("--run-id", "A"),
        ("--resume", "nothing"),
        ("distributed.world_size=129",),
        ("--tag", "a\x1bb"),
        ("epochs",),
    ],
)
def test_bad_input_gives_one_message_and_writes_nothing(words, tmp_path, capsys):
    assert cli.main(["run", "--catalog", str(tmp_path / "catalog"), *words]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and not said.out
    assert len(said.err.strip().splitlines()) == 1
    assert "\x1b" not in said.err
    assert not [*tmp_path.iterdir()]


def test_the_command_says_what_is_wrong_and_exits_with_2(command):
    assert command.run("training.epoch=3", status=2).startswith("error: ")
    assert not command.catalog.exists()


@pytest.mark.slow
def test_a_reader_that_leaves_the_pipe_does_not_end_the_training(command):
    process = command.start("--run-id", "r", *JOB, "training.epochs=3")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert status.of(Run((command.catalog / "r").resolve())).word == "succeeded"


@pytest.mark.slow
def test_more_ranks_than_cores_is_a_warning_that_says_what_it_costs(command):
    output = command.run(
        "--run-id", "r", *JOB, "training.epochs=1", f"distributed.world_size={linux.cores() + 1}"
    )
    assert re.search(rf"warning: .*{linux.cores() + 1} on {linux.cores()} cores", output)


def test_elsewhere_than_linux_training_refuses_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="needs Linux"):
        linux.require_linux("training")


def test_a_read_only_catalog_is_named(command):
    target = Path("/sys")  # where root may not make a folder either
    command.catalog = target / "catalog"
    output = command.run(*JOB, status=1)
    assert str(target) in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_full_disk_is_named_with_bytes_and_what_was_committed_stays_valid(command, tmp_path):
    command.catalog.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(command.catalog)], check=False
    )
    if made.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        options = ("training.epochs=40", "checkpoint.keep=30", "model.hidden_sizes=[100,100]")
        output = command.run("--run-id", "r", *JOB, *options, status=1)
        assert "disk is full" in output
        assert re.search(r"needs about [\d,]+ bytes", output)
        assert "Traceback" not in output
        run = Run((command.catalog / "r").resolve())
        checkpoints = sorted(run.checkpoints.iterdir())
        assert checkpoints
        assert [verify_folder(path) for path in checkpoints] == [[]] * len(checkpoints)
        found = status.of(run)
        assert found.word in ("failed", "killed")  # killed: not even that event found room
    finally:
        subprocess.run(["umount", "-l", str(command.catalog)], check=True)


@pytest.mark.slow
def test_a_setting_of_dynamo_that_is_made_before_it_is_there_is_kept():
    code = (
        "import sys, torch\n"
        "from lockstep.engine import lazy_dynamo\n"
        "lazy_dynamo.install()\n"
        "torch._dynamo.config.suppress_errors = True\n"
        "assert 'torch._dynamo.eval_frame' in sys.modules\n"
        "import torch._dynamo.config as real\n"
        "assert real.suppress_errors is True and torch._dynamo.config is real\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=110)


@pytest.mark.slow
def test_torch_compile_still_works_where_dynamo_was_put_off():
    code = (
        "import torch\n"
        "from lockstep.engine import lazy_dynamo\n"
        "lazy_dynamo.install()\n"
        "net = torch.nn.Linear(3, 2)\n"
        "optimizer = torch.optim.Adam(net.parameters())\n"
        "net(torch.ones(1, 3)).sum().backward(); optimizer.step()\n"
        "import sys\n"
        "from torch.utils.checkpoint import checkpoint\n"
        "checkpoint(net, torch.ones(1, 3), use_reentrant=False).sum().backward()\n"
        "assert 'torch._dynamo.eval_frame' not in sys.modules\n"
        "compiled = torch.compile(net, backend='eager')\n"
        "assert torch.equal(compiled(torch.ones(1, 3)), net(torch.ones(1, 3)))\n"
        "assert 'torch._dynamo.eval_frame' in sys.modules\n"
        "import torch._dynamo.utils\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=110)
