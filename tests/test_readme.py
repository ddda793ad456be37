"""README's blocks, typed in order in a copy of the repository, and the commands that the program tells one to type."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from lockstep.catalog.run import Run
from lockstep.orchestration import hints

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = ("uv ", "pip ", "cp ", "cd ")
ELSEWHERE = {  # what is not typed here, and why
    "uv run pytest": "it is running",
    "uv run lockstep ui": "it serves until Ctrl-C",
    "uv run lockstep collectives bench": "it takes minutes",
}
DIFFERENT = "uv run lockstep diff"  # ends with 1 where the runs differ, as these do
TINY = [
    "data=synthetic", "data.num_samples=60", "data.input_size=4", "data.num_classes=3", "model.hidden_sizes=[4]",
    "training.epochs=1",
]  # fmt: skip


def sections():
    """(heading, blocks) in order; a block is its language and its lines."""
    for part in re.split(r"^## ", README, flags=re.MULTILINE):
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
        yield part.partition("\n")[0], blocks


def script():
    """All that README has one type, as a script that stops where a command fails."""
    lines = ["set -e", "checkout=$PWD"]
    for _, blocks in sections():
        lines.append('cd "$checkout"')
        for language, text in blocks:
            if language == "python":
                lines += ["cat > own.py <<'END'", text.rstrip("\n"), "END"]
            elif text.startswith(COMMANDS):
                lines += [line for typed in text.splitlines() for line in as_typed(typed)]
    return "\n".join(lines) + "\n"


def as_typed(line):
    command = re.sub(r"\s+#.*$", "", line).removeprefix("pip install uv && ")
    if command in ELSEWHERE:
        return []
    told = [f"echo {shlex.quote('README> ' + command)}"]
    if command.startswith("uv add"):  # the project file is changed, and nothing is resolved or fetched
        return [*told, f"env -u UV_NO_SYNC UV_FROZEN=1 {command}"]
    return [*told, f"{command} || [ $? = 1 ]" if command.startswith(DIFFERENT) else command]


def test_readme_holds_no_placeholder_and_all_that_is_left_out_stands_there():
    typed = script()
    assert not re.search(r"my_package|some/|RUN RUN|monday|\.\.\.$", typed, re.MULTILINE)
    for command in ELSEWHERE:
        assert re.search(rf"^{re.escape(command)}(\s+#|$)", README, re.MULTILINE), command
    assert typed.count("README> ") > 25


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_every_block_of_readme_runs_in_order(tmp_path):
    checkout = tmp_path / "lockstep"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z"]
    for name in subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split("\0")[:-1]:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "As it is"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    # The packages that run these tests, as they are: nothing is fetched.
    environment |= {"UV_PROJECT_ENVIRONMENT": sys.prefix, "UV_NO_SYNC": "1", "UV_OFFLINE": "1"}
    environment |= {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}
    environment |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=checkout, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "error:" not in done.stderr and "Traceback" not in done.stdout + done.stderr


def run_hint(hint, folder):
    """A command that the program printed, as a person types it; `uv run` stands for these tests' interpreter."""
    words = shlex.split(hint)
    assert words[:2] == ["uv", "run"], hint
    started = {"lockstep": ["-m", "lockstep.cli"]}.get(words[2], [words[2]])
    return subprocess.run(
        [sys.executable, *started, *words[3:]],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def the_hint(output, before):
    (found,) = re.findall(rf"{before}(uv run .*)$", output, re.MULTILINE)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_that_goes_on_with_a_failed_run_runs_as_it_is_printed(tmp_path, command):
    (tmp_path / "own.py").write_text(
        "import os, torch\n"
        "def net(input_shape, num_classes):\n"
        "    if not os.path.exists('repaired'): raise ValueError('not yet')\n"
        "    return torch.nn.Linear(4, num_classes)\n".replace("'repaired'", repr(str(tmp_path / "repaired")))
    )
    command.catalog = tmp_path / "my runs"  # with a blank, and not where it is looked for
    words = [word for word in TINY if not word.startswith("model")]
    output = command.run(*words, "model=own:net", "--run-id", "r", status=1, cwd=tmp_path)
    hint = the_hint(output, "to continue: ")
    assert "--catalog 'my runs'" in hint
    (tmp_path / "repaired").touch()
    done = run_hint(hint, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = the_hint(run_hint(hint, tmp_path).stdout, "for example: ")
    assert "--resume r training.epochs=2" in again and "--catalog 'my runs'" in again


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_that_makes_a_longer_run_runs_as_it_is_printed(tmp_path):
    words = ["run", *TINY, "--catalog", "runs", "--run-id", "r"]
    first = [sys.executable, "-m", "lockstep.cli", *words]
    subprocess.run(first, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    resumed = [sys.executable, "-m", "lockstep.cli", "resume", "r", "--catalog", "runs"]
    said = subprocess.run(resumed, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    done = run_hint(the_hint(said, "for example: "), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([*(tmp_path / "runs").glob("[!.]*")]) == 2


@pytest.mark.parametrize(
    ("argv", "catalog", "hint"),
    [
        (["/p/.venv/bin/lockstep"], "/p/.catalog", "uv run lockstep resume r"),
        (["/x/lockstep/cli/__main__.py"], "/p/.catalog", "uv run lockstep resume r"),
        (["pipeline.py"], "/p/.catalog", "uv run pipeline.py --resume r"),
        (["/p/pipeline.py"], "/p/runs", "uv run pipeline.py --resume r --catalog runs"),
        (["sub/my run.py"], "/q/runs", "uv run 'sub/my run.py' --resume r --catalog /q/runs"),
        (["/v/site-packages/ipykernel_launcher.py"], "/p/.catalog", "uv run lockstep resume r"),
        (["-c"], "/p/.catalog", "uv run lockstep resume r"),
        ([], "/p/runs", "uv run lockstep resume r --catalog runs"),
    ],
)
def test_a_hint_names_the_script_and_the_catalog_that_were_used(argv, catalog, hint):
    run = Run(Path(catalog) / "r")
    assert hints.to_resume(argv, Path("/p"), Path(catalog), run) == hint


def test_a_run_outside_of_the_catalog_is_named_by_its_folder():
    run = Run(Path("/elsewhere/r"))
    assert hints.to_resume(["lockstep"], Path("/p"), Path("/p/.catalog"), run) == (
        "uv run lockstep resume /elsewhere/r"
    )
