"""In any locale: files of ours are UTF-8, and a console shows what it can."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exporting
from lockstep import console, files, strict_json
from lockstep.catalog import events
from lockstep.catalog.run import Run
from lockstep.datasets import image_folder
from lockstep.errors import UsageError
from lockstep.files import read_json
from lockstep.orchestration import prepare, splits
from lockstep.orchestration.start import refuse_unreadable
from marks import slow

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for place in ("src", "benchmarks", "examples")
    for path in (ROOT / place).rglob("*.py")
    if ".venv" not in path.parts
)
TEXT = {"read_text", "write_text", "TextIOWrapper"}
BY_MODE = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
NO_FILES = {"os", "webbrowser", "gzip", "Image", "self", "image"}  # whose open() is not that of files of text
TEMPORARY = {"NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}


def _reads_by_locale(call: ast.Call) -> bool:
    """Whether a call opens text without an encoding, so that the locale chooses one."""
    keywords = {word.arg: word.value for word in call.keywords}
    if "encoding" in keywords:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(getattr(keywords.get(word), "value", False) is True for word in ("text", "universal_newlines")):
        return True
    if name in TEXT:
        return True
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    while isinstance(owner, ast.Attribute):
        owner = owner.value
    if name not in BY_MODE or (name == "open" and getattr(owner, "id", "") in NO_FILES):
        return False
    constants = [each.value for each in (*call.args, keywords.get("mode")) if isinstance(each, ast.Constant)]
    modes = [value for value in constants if isinstance(value, str) and set(value) <= set("rwxab+t")]
    return not any("b" in mode for mode in modes) and not (name in TEMPORARY and not modes)


def test_every_file_of_text_names_its_encoding():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _reads_by_locale(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    ("call", "by_locale"),
    [
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("path.open('w')", True),
        ("path.open('w', encoding='utf-8')", False),
        ("os.open(path, flags)", False),
        ("os.fdopen(1, 'w')", True),
        ("path.read_text()", True),
        ("run.plan.read_text(encoding='utf-8')", False),
        ("subprocess.run(words, text=True)", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
    ],
)
def test_what_counts_as_text_without_an_encoding(call, by_locale):
    assert _reads_by_locale(ast.parse(call).body[0].value) is by_locale


ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}  # Python's text is then ASCII, and strict
OWN = """
import numpy as np
import torch
from lockstep.datasets import Source

def data(seed, test_fraction):
    print("préparé ✓")
    draw = np.random.default_rng(0)
    features = draw.normal(size=(60, 4)).astype(np.float32)
    return Source(features, draw.integers(0, 2, 60), ["é", "✓"])

def model(input_shape, num_classes):
    print("modèle ✓")
    return torch.nn.Linear(4, num_classes)
"""


def lockstep(*words, cwd=None, status=0, **environment):
    """The command as a process; what it printed, as bytes read without doubt."""
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", *words],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUTF8"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    text = (done.stdout + done.stderr).decode("ascii" if environment else "utf-8")
    assert done.returncode == status and "UnicodeEncodeError" not in text, text
    return text


def test_what_a_console_lacks_is_replaced_and_user_text_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="iso8859-1", errors="strict")
    console.forgive(stream)
    stream.write("✓ step – é 日 \udcff\n")
    stream.flush()
    assert raw.getvalue() == b"+ step - \xe9 \\u65e5 \\xff\n"


def test_what_the_user_asked_for_of_a_console_is_left():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="ignore")
    console.forgive(stream, None)
    assert stream.errors == "ignore"


def test_arguments_that_the_locale_could_not_read_are_read_as_utf_8():
    assert files.readable("\udcc3\udca9") == "é" and files.readable("bad\udcff") == "bad\\xff"
    assert files.readable("é") == "é" and files.readable("\ud800") == "\\ud800"
    assert files.printable("\udcc3\udca9\x1b") == "é\\x1b"


def test_a_path_that_is_no_text_survives_json():
    written = strict_json.encode({"path": "bad\udcff", "name": "é"}, ensure_ascii=False)
    assert written.encode() and json.loads(written) == {"path": "bad\udcff", "name": "é"}


@pytest.mark.parametrize(
    "environment",
    [ASCII, {"PYTHONIOENCODING": "ascii"}, slow({"PYTHONIOENCODING": "iso8859-1", "LC_ALL": "C.UTF-8"})],
)
def test_records_are_shown_on_any_console(tmp_path, environment):
    run = exporting.build(tmp_path, sealed=False)
    text = run.events.read_text(encoding="utf-8").replace("digits-baseline", "d\\u00e9but \\u2713")
    run.events.write_text(text, encoding="utf-8")
    shown = lockstep("show", run.run_id, "--catalog", str(tmp_path), **environment)
    assert "but +" in shown and "succeeded" in shown
    assert "unrecognized" in lockstep("list", "--é", status=2, **environment)


def test_images_are_found_whatever_bytes_their_names_are_of(tmp_path):
    for kind in (b"\xe9t\xe9", "été".encode()):
        folder = os.fsencode(tmp_path) + b"/train/" + kind
        os.makedirs(folder)
        for name in (b"\xff.png", "é.png".encode()):
            Image.new("RGB", (8, 8)).save(os.fsdecode(folder + b"/" + name))
    source = image_folder.image_folder(0, 0.2, folder=str(tmp_path), image_size=8)
    listing = splits._listing(source, np.arange(len(source.paths)))
    assert os.fsencode("".join(source.paths)) == listing["paths"].tobytes()
    assert prepare.describe(source)["classes"] == ["été", "\\xe9t\\xe9"]
    assert image_folder.state(folder=str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_goes_through_in_a_locale_of_ascii(tmp_path):
    place = tmp_path / "dépôt"
    place.mkdir()
    (place / "own.py").write_text(OWN, encoding="utf-8")
    words = ("data=own:data", "model=own:model", "training.epochs=1", "training.global_batch_size=20")
    said = lockstep("run", *words, "--tag", "é ✓", "--run-id", "a", cwd=place, **ASCII)
    assert "pr\\xe9par\\xe9 +" in said and "+ report" in said
    run = Run(place / ".catalog" / "a")
    assert read_json(run.run_log)["tag"] == events.read(run)[0]["tag"] == "é ✓"
    assert "modèle ✓" in run.rank_log(0).read_text(encoding="utf-8")
    assert read_json(run.data / "data.json")["classes"] == ["é", "✓"]
    assert "nothing was found against it" in lockstep("verify", "a", cwd=place, **ASCII)
    again = lockstep("resume", "a", "training.epochs=2", "distributed.start_method=spawn", cwd=place, **ASCII)
    assert "+ report" in again
    assert "a  " in lockstep("list", "--tag", "é ✓", cwd=place, **ASCII)


def test_a_catalog_below_a_name_that_is_not_utf_8_is_refused_in_a_line(tmp_path):
    with pytest.raises(
        UsageError, match=r"is not UTF-8, and safetensors opens no file there; rename the folder"
    ):
        refuse_unreadable(tmp_path / "bad\udcff" / ".catalog")
    refuse_unreadable(tmp_path / "é" / ".catalog")
