import json
import os
import shutil
import subprocess

import pytest

from forging import edit_json, forge, rewrite
from lockstep.catalog import events, status, verification
from lockstep.catalog.run import Run
from lockstep.catalog.seal import check, head_of, seal
from lockstep.cli import main

needs_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's repository with one commit, where the commands are called."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    (folder / ".gitignore").write_text(".catalog/\n")
    git(folder, "init", "-q")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "begin")
    monkeypatch.chdir(folder)
    return folder


def git(folder, *words):
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make(project, run_id="r", ended=True):
    """A small run of the project's commit, not sealed."""
    run = Run((project / ".catalog" / run_id).resolve())
    run.logs.mkdir(parents=True)
    events.append(run, "created", run_id=run_id, tag=None, parent=None)
    events.append(run, "started", attempt=1, process=status.process_identity() | {"start_ticks": 1})
    run.rank_log(0).write_text("loss 0.5\n")
    provenance = {"run_id": run_id, "parent": None, "git": {"commit": git(project, "rev-parse", "HEAD")}}
    run.provenance.write_text(json.dumps(provenance))
    if ended:
        events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    return run


@pytest.fixture
def run(project):
    made = make(project)
    seal(made)
    return made


@pytest.fixture
def failed(project):
    """One that another attempt may follow."""
    made = make(project, ended=False)
    made.plan.write_text('{"threads_per_rank": 1}')
    events.append(made, "finished", status="failed", cause="exception", message="it broke", rank=0)
    seal(made)
    return made


def lockstep(capsys, *words):
    code = main([str(word) for word in words])
    written = capsys.readouterr()
    assert "Traceback" not in written.err
    return code, written.out + written.err


def forge_log(run):
    """What an owner of the folder can do: change a file, and make everything inside it agree."""
    rewrite(run.rank_log(0), "loss 0.1\n")
    forge(run)
    assert check(run).current


def test_without_an_anchor_a_consistent_forgery_verifies_and_verify_says_that_it_would(run, capsys):
    forge_log(run)
    code, text = lockstep(capsys, "verify", "r")
    assert code == 0 and "that nobody who may write to this folder changed files, seal and history" in text


def test_a_consistent_forgery_fails_against_the_note_that_verify_finds_by_itself(run, capsys):
    code, text = lockstep(capsys, "seal", "r", "--anchor")
    assert code == 0 and "git note" in text
    code, text = lockstep(capsys, "verify", "r")
    assert code == 0 and "the seal is the one that was anchored (git note" in text
    forge_log(run)
    code, text = lockstep(capsys, "verify", "r")
    assert code == 1 and "does not hold the seal" in text and "git note" in text


def test_a_forged_commit_does_not_lead_away_from_the_note(run, project, capsys):
    lockstep(capsys, "seal", "r", "--anchor", "git-note")
    (project / "code.py").write_text("x = 2\n")
    git(project, "commit", "-q", "-a", "-m", "other")
    other = git(project, "rev-parse", "HEAD")
    edit_json(run.provenance, lambda value: value["git"].update(commit=other))
    forge(run)
    assert lockstep(capsys, "verify", "r")[0] == 1


def test_a_consistent_forgery_fails_against_a_printed_line(run, capsys):
    code, line = lockstep(capsys, "seal", "r", "--anchor", "print")
    assert code == 0 and line.split() == ["lockstep", "r", head_of(run)]
    for kept in (line, head_of(run), head_of(run).upper()):
        assert lockstep(capsys, "verify", "r", "--anchor", kept)[0] == 0
    forge_log(run)
    code, text = lockstep(capsys, "verify", "r", "--anchor", line)
    assert code == 1 and "does not hold the seal" in text
    shutil.rmtree(run.path)  # nor does a whole other run in its place
    seal(make(run.catalog.parent))
    assert lockstep(capsys, "verify", "r", "--anchor", line)[0] == 1


def test_a_seal_that_was_taken_away_fails_against_the_anchor(run, capsys):
    lockstep(capsys, "seal", "r", "--anchor")
    run.manifest.unlink()
    lines = run.events.read_bytes().splitlines(keepends=True)
    rewrite(run.events, b"".join(lines[:-1]))
    assert verification.verify(run).findings == []  # as if it had never been sealed
    assert lockstep(capsys, "verify", "r")[0] == 1


def test_an_attempt_that_is_said_to_have_begun_covers_for_nothing(run, capsys):
    """A line in the history costs a forger nothing: whatever it excuses must not be called proven."""
    lockstep(capsys, "seal", "r", "--anchor")
    events.append(run, "started", attempt=2, process={})
    rewrite(run.rank_log(0), "loss 0.1\n")
    code, text = lockstep(capsys, "verify", "r")
    assert code == 1 and "a run that succeeded, which gets no other attempt" in text
    assert "logs/rank-0.log" in text
    assert "the seal is the one that was anchored" not in text


def test_an_attempt_after_the_seal_excuses_only_what_its_steps_write(failed, capsys):
    run = failed
    lockstep(capsys, "seal", "r", "--anchor")
    events.append(run, "started", attempt=2, process={})
    edit_json(run.plan, lambda value: value.update(threads_per_rank=7))
    with run.rank_log(0).open("a") as log:
        log.write("more\n")
    run.metrics.mkdir()
    run.metrics_file(0, 2).write_text("")
    (finding,) = check(run).findings
    assert finding.file == "distributed.json"  # its setup did not begin again
    code, text = lockstep(capsys, "verify", "r")
    assert code == 1
    assert "goes on after the anchored seal" in text and "the seal is the one that was anchored" not in text
    events.append(run, "step_started", step="setup_distributed")
    state = check(run)
    assert (
        state.findings == []
        and state.went_on
        and sorted(state.rewritten) == ["distributed.json", "logs/rank-0.log"]
    )
    assert lockstep(capsys, "verify", "r")[0] == 1  # still nothing that the anchor covers


def test_what_was_added_after_the_anchor_is_not_covered_by_it_until_it_is_anchored_again(run, capsys):
    lockstep(capsys, "seal", "r", "--anchor")
    events.append(run, "started", attempt=2, process={})
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    run.rank_log(0).write_text("loss 0.1\n")
    seal(run)
    assert verification.verify(run).findings == []
    code, text = lockstep(capsys, "verify", "r")
    assert code == 1 and "a seal that is younger than the anchored one" in text
    assert lockstep(capsys, "seal", "r", "--anchor")[0] == 0
    assert lockstep(capsys, "verify", "r")[0] == 0


def test_anchoring_twice_leaves_one_line_beside_notes_of_others(run, project, capsys):
    ref = "--ref=refs/notes/lockstep"
    git(project, "notes", ref, "add", "-m", "not a line of ours")
    seal(make(project, "s"))
    for run_id in ("r", "s", "r"):
        assert lockstep(capsys, "seal", run_id, "--anchor")[0] == 0
    lines = [line for line in git(project, "notes", ref, "show").splitlines() if line]
    heads = [f"lockstep {run_id} {head_of(Run(project / '.catalog' / run_id))}" for run_id in ("r", "s")]
    assert lines == ["not a line of ours", *heads]
    assert lockstep(capsys, "verify", "--all")[0] == 0


def test_no_anchor_is_made_of_a_record_that_does_not_verify(run, capsys):
    rewrite(run.rank_log(0), "loss 0.1\n")
    for words in (["--anchor"], ["--anchor", "print"], []):
        code, text = lockstep(capsys, "seal", "r", *words)
        assert code == 1 and "logs/rank-0.log" in text and "nothing was sealed" in text
    assert events.read(run)[-1]["event"] == "sealed"


def test_without_a_repository_or_a_commit_the_message_says_what_else_there_is(
    run, tmp_path, monkeypatch, capsys
):
    shutil.copytree(run.path, tmp_path / "away" / "r")
    monkeypatch.chdir(tmp_path / "away")
    code, text = lockstep(capsys, "seal", "./r", "--anchor")
    assert code == 1 and "--anchor print" in text
    edit_json(
        tmp_path / "away" / "r" / "provenance.json", lambda value: value.update(git={"absent": "no git"})
    )
    forge(Run(tmp_path / "away" / "r"))
    code, text = lockstep(capsys, "seal", "./r", "--anchor")
    assert code == 1 and "no commit on record" in text


def test_git_without_a_name_is_said_in_words(run, project, capsys, monkeypatch):
    git(project, "config", "--unset", "user.name")
    git(project, "config", "--unset", "user.email")
    git(project, "config", "user.useConfigOnly", "true")
    code, text = lockstep(capsys, "seal", "r", "--anchor")
    assert code == 1 and "git config user.name" in text


# Sealing what ended without a seal.


def test_a_dead_run_is_sealed_as_it_stands_and_stays_killed(project, capsys):
    run = make(project, ended=False)
    run.checkpoints.mkdir()
    (run.checkpoints / ".tmp-step").mkdir()
    (run.checkpoints / ".tmp-step" / "half").write_text("x")
    (run.path / ".tmp-run_log.json-x").write_text("x")
    assert status.of(run).word == "killed"
    code, text = lockstep(capsys, "seal", "r")
    assert code == 0 and "sealed as it stands: killed" in text
    assert status.of(run).word == "killed" and not run.live.exists()
    assert lockstep(capsys, "verify", "r")[0] == 0
    files = json.loads(run.manifest.read_bytes())["files"]
    assert set(files) == {"logs/rank-0.log", "provenance.json"}  # and nothing half-written
    code, text = lockstep(capsys, "seal", "r")
    assert code == 0 and "it is sealed already" in text


def test_a_seal_that_was_cut_short_is_finished(project, capsys):
    run = make(project)
    seal(run)
    lines = run.events.read_bytes().splitlines(keepends=True)
    rewrite(run.events, b"".join(lines[:-1]))
    assert lockstep(capsys, "verify", "r")[0] == 1
    rewrite(run.rank_log(0), "loss 0.1\n")
    assert lockstep(capsys, "seal", "r")[0] == 1  # it was more than that
    rewrite(run.rank_log(0), "loss 0.5\n")
    assert lockstep(capsys, "seal", "r")[0] == 0
    assert lockstep(capsys, "verify", "r")[0] == 0


def test_a_running_run_is_not_sealed(project, capsys):
    run = make(project, ended=False)
    descriptor = status.hold(run)
    try:
        code, text = lockstep(capsys, "seal", "r")
        assert code == 2 and "is running" in text
        assert lockstep(capsys, "verify", "r")[0] == 0
    finally:
        status.release(run, descriptor)
    assert not run.manifest.exists()


# Signatures.


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "id_ed25519"
    made = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", str(path)], check=True
    )
    assert made.returncode == 0
    return path


def allowed(path, key, name="ada@example.org", options=""):
    path.write_text(f"{name} {options} {key.with_suffix('.pub').read_text()}")
    return path


@needs_keygen
def test_a_signature_says_who_signed_and_a_consistent_forgery_fails_against_it(run, key, tmp_path, capsys):
    signers = allowed(tmp_path / "allowed", key, options='namespaces="lockstep"')
    code, text = lockstep(capsys, "seal", "r", "--sign", key)
    assert code == 0 and "signed with SHA256:" in text
    code, text = lockstep(capsys, "verify", "r", "--signers", signers)
    assert code == 0 and "ada@example.org signed this seal with key SHA256:" in text
    rewrite(run.rank_log(0), "loss 0.1\n")
    forge(run)  # with the signature left where it is, taken away, or told of again
    assert lockstep(capsys, "verify", "r", "--signers", signers)[0] == 1
    kept = (run.path / "signatures" / "1.json").read_bytes()
    shutil.rmtree(run.path / "signatures")
    code, text = lockstep(capsys, "verify", "r", "--signers", signers)
    assert code == 1 and "holds no signature of the run as it is by anybody in" in text
    (run.path / "signatures").mkdir()
    (run.path / "signatures" / "1.json").write_bytes(kept)
    value = json.loads(kept)
    from lockstep.catalog.seal import signed_line

    event = json.loads(signed_line(run, run.events.read_bytes(), 1))
    fields = {name: event[name] for name in ("file", "signature_sha256")}
    events.append(run, "signed", time=value["time"], **fields)
    assert check(run).current
    code, text = lockstep(capsys, "verify", "r", "--signers", signers)
    assert code == 1 and "is no good signature" in text


@needs_keygen
def test_flipped_bytes_of_a_signature_or_of_the_event_that_tells_of_it_is_found(run, key, capsys):
    lockstep(capsys, "seal", "r", "--sign", key)
    assert check(run).findings == []
    for path, start in ((run.path / "signatures" / "1.json", 0), (run.events, None)):
        content = path.read_bytes()
        first = content.rindex(b'{"event": "signed"') if start is None else start
        for place in range(first, len(content), 3):
            rewrite(path, content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert check(run).findings, (path, place)
        rewrite(path, content)
    assert check(run).findings == []


@needs_keygen
def test_another_key_another_namespace_and_no_file_of_signers_vouch_for_nobody(run, key, tmp_path, capsys):
    lockstep(capsys, "seal", "r", "--sign", key)
    code, text = lockstep(capsys, "verify", "r")
    assert (
        code == 0 and "whose keys these are: SHA256:" in text and "no anchor and no known signature" in text
    )
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    for signers in (
        allowed(tmp_path / "a", tmp_path / "other"),
        allowed(tmp_path / "b", key, options='namespaces="git"'),
        allowed(tmp_path / "c", key, options='valid-before="20200101"'),
    ):
        assert lockstep(capsys, "verify", "r", "--signers", signers)[0] == 1


@needs_keygen
def test_gits_own_file_of_signers_is_used_and_several_may_sign(run, key, project, tmp_path, capsys):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    for each in (key, tmp_path / "other"):
        assert lockstep(capsys, "seal", "r", "--sign", each)[0] == 0
    git(project, "config", "gpg.ssh.allowedSignersFile", str(allowed(tmp_path / "allowed", key)))
    code, text = lockstep(capsys, "verify", "r", "--json")
    found = json.loads(text)
    assert code == 0 and [each["who"] for each in found["signatures"]] == ["ada@example.org", None]
    assert any("whose keys these are" in each for each in found["unproven"])


@needs_keygen
def test_a_key_that_cannot_sign_leaves_the_record_as_it_was(run, tmp_path, capsys):
    before = run.events.read_bytes()
    (tmp_path / "key").write_text("no key\n")
    code, text = lockstep(capsys, "seal", "r", "--sign", tmp_path / "key")
    assert code == 1 and "did not sign" in text
    assert lockstep(capsys, "seal", "r", "--sign", "/nowhere")[0] == 2
    assert run.events.read_bytes() == before and not (run.path / "signatures").exists()


@needs_keygen
def test_a_signed_run_can_go_on_and_be_signed_again(run, key, tmp_path, capsys):
    signers = allowed(tmp_path / "allowed", key)
    lockstep(capsys, "seal", "r", "--sign", key)
    events.append(run, "started", attempt=2, process={})
    events.append(run, "finished", status="succeeded", cause=None, message=None, rank=None)
    seal(run)
    assert verification.verify(run).findings == []
    assert (
        lockstep(capsys, "verify", "r", "--signers", signers)[0] == 1
    )  # the first signature is of the first seal
    lockstep(capsys, "seal", "r", "--sign", key)
    assert lockstep(capsys, "verify", "r", "--signers", signers)[0] == 0
    assert [each["event"] for each in events.read(run)].count("signed") == 2
    first = run.path / "signatures" / "1.json"
    kept = first.read_bytes()
    first.unlink()  # of an earlier seal, and still part of the record
    assert any("signatures/1.json is missing" in str(each) for each in check(run).findings)
    first.write_bytes(kept)
    (run.path / "signatures" / "3.json").write_bytes(kept)
    assert any("signatures/3.json is not in the history" in str(each) for each in check(run).findings)
