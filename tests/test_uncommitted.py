"""The record of the code: what differs from the commit is found by its bytes, kept as far as it fits, else named."""

import os
import shutil
from pathlib import Path

import pytest

from lockstep.catalog import credentials, ignored, provenance, uncommitted
from lockstep.catalog.compare import code, text
from lockstep.catalog.run import Run
from lockstep.files import sha256_of
from repositories import git, repository

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def plain_git(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def project(tmp_path):
    return repository(
        tmp_path / "project", nets__py="width = 1\n", data__csv="1,2\n", __gitignore=".catalog/\n"
    )


def recorded(project: Path, run_id: str = "a", catalog: Path | None = None) -> tuple[dict, str, Run]:
    """The record of the code, the text of its patch, and the run."""
    run = Run((catalog or project / ".catalog").resolve() / run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    record = provenance.write(run, ["lockstep", "run"], project)
    assert "patch_absent" not in record["git"], record["git"]
    return record["git"], run.patch.read_text() if run.patch.exists() else "", run


@pytest.mark.parametrize("mark", ["--skip-worktree", "--assume-unchanged"])
def test_a_change_that_git_was_told_to_pass_over_is_recorded(project, mark):
    git(project, "update-index", mark, "nets.py")
    _, _, before = recorded(project)
    (project / "nets.py").write_text("width = 2\n")
    found, patch, run = recorded(project, "b")
    assert found["dirty"] is True and "+width = 2" in patch
    assert git(project, "ls-files", "-v", "nets.py")[:1] in b"Sh", "the user's own mark is gone"
    compared = code.compare(code.state_of(before), code.state_of(run), [project])
    assert compared.same is False and compared.files == ["nets.py"]


@pytest.mark.parametrize(
    "setting", ["core.trustctime=false", "core.checkStat=minimal", "core.ignoreStat=true"]
)
def test_no_setting_hides_a_file_of_the_same_size_and_time(project, setting):
    git(project, "config", *setting.split("="))
    time = (project / "nets.py").stat().st_mtime_ns - 10_000_000_000
    os.utime(project / "nets.py", ns=(time, time))
    git(project, "update-index", "--refresh")
    (project / "nets.py").write_text("width = 2\n")
    os.utime(project / "nets.py", ns=(time, time))
    assert "+width = 2" in recorded(project)[1]


def test_a_file_that_is_skipped_because_it_is_not_checked_out_is_no_change(project):
    (project / "sub").mkdir()
    (project / "sub" / "more.py").write_text("more\n")
    git(project, "add", "sub")
    git(project, "commit", "--quiet", "-m", "second")
    git(project, "sparse-checkout", "set", "--cone", "other")
    assert not (project / "sub").exists()
    found, patch, _ = recorded(project)
    assert found["dirty"] is False and not patch


def test_an_untouched_tree_is_not_recorded_as_changed_whatever_its_times(project):
    with (project / "large.bin").open("wb") as file:
        file.truncate(20 << 20)
    git(project, "add", "large.bin")
    git(project, "commit", "--quiet", "-m", "large")
    for name in ("nets.py", "large.bin"):
        os.utime(project / name)
    found, patch, run = recorded(project)
    assert found["dirty"] is False and not patch and not found["left_out_count"]
    assert found["tree"] == git(project, "rev-parse", "HEAD^{tree}").decode().strip()
    assert code.state_of(run).gap is None


def test_a_file_of_lfs_whose_time_moved_is_not_recorded_as_changed(project):
    content = b"a large file's content"
    (project / ".gitattributes").write_text("*.pt filter=lfs -text\n")
    digest = __import__("hashlib").sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"
    (project / "weights.pt").write_text(pointer)
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "lfs")
    (project / "weights.pt").write_bytes(content)  # as its filter checks it out
    assert recorded(project)[0]["dirty"] is False
    (project / "weights.pt").write_bytes(content[::-1])
    assert recorded(project, "b")[0]["dirty"] is True


def test_what_a_filter_encrypts_is_unchanged_while_untouched_and_never_in_the_patch(project, tmp_path):
    (project / ".gitattributes").write_text("*.env.py filter=crypt\n")
    git(project, "config", "filter.crypt.clean", "tr a-z b-za")
    git(project, "config", "filter.crypt.smudge", "tr b-za a-z")
    git(project, "config", "filter.crypt.required", "true")
    (project / "own.env.py").write_text("plaintext = 1\n")
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "encrypted")
    assert b"plaintext" not in git(project, "show", "HEAD:own.env.py")
    found, patch, _ = recorded(project)
    assert (found["dirty"], found["left_out_count"], patch) == (False, 0, "")
    (project / "own.env.py").write_text("plaintext = 22\n")
    (project / "new.env.py").write_text("plaintext = 3\n")
    (project / "nets.py").write_text("width = 2\n")
    found, patch, _ = recorded(project, "b")
    assert "+width = 2" in patch and "plaintext" not in patch
    assert {each["path"] for each in found["left_out"]} == {"own.env.py", "new.env.py"}


def test_nobody_is_told_to_commit_what_looks_like_credentials(project):
    (project / ".env").write_text("A=1\n")
    found, _, run = recorded(project)
    (sentence,) = provenance.not_recorded({"git": found})
    assert "ommit" not in sentence and "ave git ignore them" in sentence
    assert (code.state_of(run).gap or "").startswith("1 changed file not in the patch")
    (project / "large.csv").write_bytes(bytes(2 << 20))
    (sentence,) = provenance.not_recorded({"git": recorded(project, "b")[0]})
    assert "ave git ignore what looks like credentials" in sentence


def test_one_large_file_does_not_take_the_change_of_code_beside_it_along(project, capsys):
    git(project, "add", "data.csv")
    with (project / "data.csv").open("wb") as file:
        file.truncate(20 << 20)
    (project / "nets.py").write_text("width = 2\n")
    found, patch, run = recorded(project)
    assert "+width = 2" in patch and "data.csv" not in patch
    (left,) = found["left_out"]
    assert (left["path"], left["bytes"], left["tracked"]) == ("data.csv", 20 << 20, True)
    assert left["sha256"] == sha256_of(project / "data.csv")
    (sentence,) = provenance.not_recorded({"git": found})
    assert "data.csv (above 10 MB)" in sentence
    assert "data.csv" in (code.state_of(run).gap or "")


def test_many_small_files_do_not_take_the_change_of_code_beside_them_along(project, monkeypatch):
    monkeypatch.setattr(uncommitted, "MOST_UNTRACKED", 20)
    (project / "images").mkdir()
    for number in range(300):
        (project / "images" / f"{number:03}.txt").write_text(f"{number}\n")
    (project / "nets.py").write_text("width = 2\n")
    (project / "zzz.py").write_text("new = 1\n")
    found, patch, run = recorded(project)
    assert "+width = 2" in patch and "+new = 1" in patch
    assert found["left_out_count"] == 280 and len(found["left_out"]) == 100
    same = recorded(project, "b")[2]
    assert code.compare(code.state_of(run), code.state_of(same), [project]).same is True
    (project / "images" / "299.txt").write_text("other\n")  # beyond the hundred that are named
    other = recorded(project, "c")[2]
    compared = code.compare(code.state_of(run), code.state_of(other), [project])
    assert compared.gaps, "a difference among files that are not named was passed over"


def test_where_the_patch_has_no_room_programs_come_first(project, monkeypatch):
    monkeypatch.setattr(uncommitted, "PATCH_BYTES", 3000)
    (project / "data.csv").write_text("9,9\n" * 2000)
    (project / "nets.py").write_text("width = 2\n")
    found, patch, _ = recorded(project)
    assert "+width = 2" in patch and "9,9" not in patch
    assert [each["path"] for each in found["left_out"]] == ["data.csv"]


def test_what_was_left_out_is_compared_by_its_digest(project):
    (project / "table.bin").write_bytes(bytes(2 << 20))
    a = recorded(project)[2]
    b = recorded(project, "b")[2]
    assert code.compare(code.state_of(a), code.state_of(b), [project]).same is True
    (project / "table.bin").write_bytes(b"1" * (2 << 20))
    c = recorded(project, "c")[2]
    compared = code.compare(code.state_of(a), code.state_of(c), [project])
    assert compared.same is False and compared.files == ["table.bin"]


KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".env", "DEBUG=1\n"),
        ("id_ed25519", "nothing that looks like one\n"),
        ("notes.txt", f"the key is {KEY}\n"),
        ("settings.yaml", "wandb:\n  api_key: 5f70bf18a086007016e948b04aed3b82\n"),
        ("settings.json", '{"password": "correct4horse4battery"}\n'),
        ("upload.py", 'token = "ghp_' + "a1" * 18 + '"\n'),
        ("fetch.py", 'URL = "https://ada:s3cret99@example.org/data"\n'),
        ("blob.bin", "\0" * 50 + f"aws_access_key_id {KEY} \0"),
    ],
)
def test_what_looks_like_a_credential_is_left_out_and_that_is_said(project, name, text):
    (project / name).write_text(text)
    (project / "nets.py").write_text("width = 2\n")
    found, patch, run = recorded(project)
    assert [(each["path"], each["reason"]) for each in found["left_out"]] == [
        (name, "looks like credentials")
    ]
    assert "+width = 2" in patch and text.strip()[-12:] not in patch
    assert any(name in sentence for sentence in provenance.not_recorded({"git": found}))
    everything = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert text.strip().encode()[-16:] not in everything


def test_a_credential_that_a_change_takes_out_does_not_travel_either(project):
    (project / "fetch.py").write_text(f'KEY = "{KEY}"\n')
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "oh no")
    (project / "fetch.py").write_text("import os\n")
    assert KEY not in recorded(project)[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.py", 'tokenizer = "gpt2-medium-v1-large"\npad_token = "<pad>"\ntoken = next(stream)\n'),
        ("train.py", 'api_key = os.environ["API_KEY_OF_2026"]\npassword = getpass("password: ")\n'),
        ("secrets.py", "def share(parts):\n    return parts\n"),
        ("config.yaml", "max_tokens: 1000000\ntokenizer: bert-base-uncased-12\nmonkey: abcdefgh12345\n"),
        (".env.example", "API_KEY=\n"),
        ("keys.txt", "https://example.org:8080/path@2x\n"),
    ],
)
def test_ordinary_files_are_not_taken_for_credentials(name, text):
    assert not credentials.named_like_one(name)
    assert not credentials.holds_one(name, text.encode())


SECRET = "wJalrXUtnFEMI0K7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.sh", f"AWS='aws_secret_access_key={SECRET}'"),
        ("a.py", f'URL = "https://example.org/x?token={SECRET}&page=2"'),
        ("a.ipynb", f'  "os.environ[\\"WANDB_API_KEY\\"]=\\"{SECRET}\\"\\n",'),
        ("a.py", f'os.environ.setdefault("WANDB_API_KEY", "{SECRET}")'),
        ("a.py", "PASSWORD = 'correct horse battery'"),
        ("a.py", 'password: str = "hunterhunter"'),
        ("a.yaml", "db:\n  password: correct horse battery"),
        ("a.py", f'C = "DefaultEndpointsProtocol=https;AccountKey={SECRET * 2}=="'),
        ("a.txt", f"Authorization: Bearer {SECRET}"),
        ("a.py", f'headers = {{"Authorization": "Bearer {SECRET}"}}'),
        ("a.py", 'headers["Authorization"] = "Basic dXNlcjpwYXNzd29yZA=="'),
        ("config.json", '{"auths":{"x":{"auth":"dXNlcjpwYXNzd29yZA=="}}}'),
        ("a.yaml", f"    client-key-data: {SECRET * 2}"),
        ("a.txt", "AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2),
        ("a.py", "BOT = '123456789:" + "Aa0_-" * 7 + "'"),
        ("jar.txt", "# Netscape HTTP Cookie File\n"),
    ],
)
def test_secrets_are_seen_in_the_forms_that_tools_write(name, text):
    assert credentials.holds_one(name, text.encode())
    assert credentials.holds_one(name, text.encode("utf-16"))
    assert credentials.holds_one(name, b"+" + text.replace("\n", "\n+").encode())


@pytest.mark.parametrize(
    "text",
    [
        "password: str",
        "token = tokenizer.encode(x)",
        "AccountKey = load()",
        'password = getpass("your password, please: ")',
        'PASSWORD = "Enter the password"',
        'headers = {"Authorization": f"Bearer {token}"}',
        '# send "Authorization: Bearer YOUR_TOKEN"',
        'auth = {"auth": "required"}',
        'token = vocabulary["token_00001"]',
        'print("token = ", token_2, "secret")',
        'parser.add_argument("--password", help="what the 2nd server wants")',
        'layers = ["basic block_2", "token mixer_12_of_these"]',
    ],
)
def test_ordinary_lines_of_a_program_hold_no_secret(text):
    assert not credentials.holds_one("train.py", text.encode())


def test_a_cookie_jar_is_known_by_its_name():
    assert credentials.named_like_one("data/cookies.txt")


def test_a_list_of_patterns_leaves_files_out_and_keeps_what_is_no_credential(project):
    (project / ignored.NAME).write_text("# mine\nprivate/\n/notes.*\n!token.txt\n")
    (project / "private").mkdir()
    (project / "private" / "x.py").write_text("x\n")
    (project / "notes.txt").write_text("mine\n")
    (project / "token.txt").write_text("<pad>\n")
    found, patch, _ = recorded(project)
    assert {each["path"] for each in found["left_out"]} == {"private/x.py", "notes.txt"}
    assert "<pad>" in patch


@pytest.mark.parametrize("where", ["link", "beside", "link to a folder of the repository"])
def test_no_catalog_is_part_of_the_code(project, tmp_path, where):
    (project / ".gitignore").unlink()
    git(project, "commit", "--quiet", "-am", "nothing is ignored")
    catalog = project / ".catalog"
    if where == "beside":
        for name in ("parameters.yaml", "events.jsonl"):
            (catalog / "old").mkdir(parents=True, exist_ok=True)
            (catalog / "old" / name).write_text("{}\n")
        (catalog / ".store").mkdir()
        (catalog / ".store" / ("a" * 64)).write_text("data\n")
        catalog = project / "runs"
    else:
        target = tmp_path / "elsewhere" if where == "link" else project / "real"
        target.mkdir()
        catalog.symlink_to(target)
    found, patch, _ = recorded(project, catalog=catalog)
    assert (found["dirty"], found["untracked"], patch) == (False, 0, "")


def test_a_file_that_became_a_link_or_a_folder_is_recorded(project, tmp_path):
    (project / "nets.py").unlink()
    (project / "nets.py").symlink_to("data.csv")
    (project / "data.csv").unlink()
    (project / "data.csv").mkdir()
    (project / "data.csv" / "part.csv").write_text("3\n")
    _, _, run = recorded(project)
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    git(tmp_path / "clone", "apply", str(run.patch))
    assert (tmp_path / "clone" / "nets.py").is_symlink()
    assert (tmp_path / "clone" / "data.csv" / "part.csv").read_text() == "3\n"


@pytest.mark.parametrize(
    ("name", "text", "kept_back"),
    [(".env", "A=1\n", True), ("notes.txt", f"{KEY}\n", True), ("nets.py", "w = 2\n", False)],
)
def test_a_patch_of_an_earlier_version_that_holds_credentials_is_not_sent_elsewhere(
    project, name, text, kept_back
):
    from compared_runs import build
    from lockstep.catalog.export import material, to_mlflow

    (project / name).write_text(text)
    git(project, "add", "--all", "--intent-to-add")
    run = build(project / ".catalog", "old")
    run.patch.write_bytes(git(project, "diff", "HEAD"))
    assert bool(to_mlflow.kept_back_of(material.gather(run))) is kept_back


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["conf.json"], "1 file, not imported, but may have been read: conf.json"),
        (["README.md"], "1 file, with none of which a run computes: README.md"),
        (["README.md", "a.csv"], "2 files, not imported, but 1 of them may have been read: README.md, a.csv"),
    ],
)
def test_a_file_that_the_model_may_have_read_is_not_called_harmless(files, words):
    compared = code.Comparison(False, "other commits", files).as_dict()
    assert list(text.code_lines(compared, 10)) == ["other commits", words]
