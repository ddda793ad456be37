"""`lockstep collectives show|prove|cost`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import needs_torch, wait_until
from lockstep.cli import collectives, main
from lockstep.collectives import prove
from lockstep.collectives.schedule import PAIRS

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    return main(["collectives", *words])


def test_show_says_who_sends_which_chunk_to_whom(capsys):
    assert run("show", "--algorithm", "ring", "--world-size", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "all_reduce by ring: 4 ranks, the buffer in 4 chunks, 6 rounds"
    assert lines[3].split(maxsplit=4) == ["1", "0", "1", "3", "added to what is there"]
    assert len(lines) == 3 + 6 * 4


def test_show_as_json_holds_every_message(capsys):
    assert run("show", "--algorithm", "tree", "--world-size", "5", "--pieces", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rounds"]) == 4
    assert sum(len(messages) for messages in found["rounds"]) == 2 * 2 * 4
    assert {"from": 0, "to": 1, "chunks": [0], "kind": "receive_reduce"} in found["rounds"][0]


@pytest.mark.parametrize("algorithm", PAIRS)
def test_the_drawing_is_well_formed_and_has_an_arrow_for_each_message(algorithm, tmp_path, capsys):
    file = tmp_path / "drawing.svg"
    words = ("show", "--algorithm", algorithm, "--world-size", "6")
    words += ("--ranks-per-machine", "3") if algorithm == "hierarchical" else ()
    assert run(*words, "--svg", str(file)) == 0
    assert str(file) in capsys.readouterr().out
    assert run(*words, "--json") == 0
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    root = ElementTree.parse(file).getroot()
    labels = [each for each in root.iter() if each.get("class") == "chunks"]
    assert len(labels) == sum(len(messages) for messages in rounds)
    assert "prefers-color-scheme: dark" in file.read_text()


def test_the_drawings_in_the_documents_are_what_the_commands_beside_them_draw(tmp_path):
    text = (ROOT / "docs" / "collectives.md").read_text()
    commands = re.findall(r"^uv run lockstep collectives (show .*) --svg (\S+)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for words, path in commands:
        assert run(*words.split(), "--svg", str(tmp_path / "drawing.svg")) == 0
        assert (tmp_path / "drawing.svg").read_text() == (ROOT / path).read_text(), (
            f"draw {path} again: {words}"
        )


def test_added_and_taken_differ_in_shape_and_not_only_in_colour(tmp_path):
    file = tmp_path / "drawing.svg"
    assert run("show", "--algorithm", "ring", "--svg", str(file)) == 0
    text = file.read_text()
    assert "line.copy { stroke-dasharray" in text
    elements = list(ElementTree.parse(file).getroot().iter())
    circles = [each for each in elements if each.tag.endswith("circle") and each.get("class") == "add"]
    heads = [each for each in elements if each.tag.endswith("path") and each.get("class") == "copy"]
    assert len(circles) == len(heads) == 12 + 1  # one of each in the legend


def test_prove_prints_a_line_for_every_pair_and_exits_0(capsys):
    assert run("prove", "--max-world-size", "6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.endswith("proven")]) == sum(map(len, PAIRS.values()))


def test_prove_exits_1_and_says_where_when_anything_fails(capsys, monkeypatch):
    original = prove.closed_form

    def lying(collective, algorithm, rank, *rest):
        form = original(collective, algorithm, rank, *rest)
        return type(form)(form.rounds, form.sent + 1, form.received)

    monkeypatch.setattr(prove, "closed_form", lying)
    assert run("prove", "--max-world-size", "3", "--algorithm", "ring") == 1
    out = capsys.readouterr().out
    assert "3 FAILED" in out
    assert "failed: ring all_reduce, 1 ranks" in out


def test_prove_as_json_names_each_world(capsys):
    assert run("prove", "--max-world-size", "3", "--algorithm", "direct", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 4 * 3
    assert found[2] == {
        "algorithm": "direct",
        "collective": "all_reduce",
        "world_size": 3,
        "ranks_per_machine": 3,
        "rounds": 2,
        "sent_buffers": pytest.approx(4 / 3),
        "failures": [],
    }


def test_cost_puts_the_algorithms_side_by_side(capsys):
    assert run("cost", "--world-size", "2", "64", "--bytes", "400000000") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("all_reduce of 400 MB, 8 ranks on a machine; links: 2 µs and 50 GB/s inside")
    assert lines[2].split() == ["ranks", *PAIRS, "fastest"]
    assert lines[4].split()[-1] == "hierarchical"


def test_cost_of_one_algorithm_for_16384_ranks(capsys):
    words = ("cost", "--algorithm", "ring", "--world-size", "16384", "--bytes", "400000000")
    assert run(*words) == 0
    assert "32,766" in capsys.readouterr().out
    assert run(*words, "--between-gb-per-second", "25", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["rounds"] == 32766
    assert found["bytes_sent"] == pytest.approx(8e8, rel=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        ("show", "--algorithm", "tree", "--collective", "all_gather"),
        ("show", "--algorithm", "ring", "--world-size", "129"),
        ("show", "--algorithm", "ring", "--world-size", "33", "--svg", "drawing.svg"),
        ("show", "--algorithm", "ring", "--pieces", "3"),
        ("show", "--algorithm", "tree", "--pieces", "100000000"),
        ("show", "--algorithm", "ring", "--ranks-per-machine", "2"),
        ("show", "--algorithm", "ring", "--svg", ""),
        ("show", "--algorithm", "ring", "--svg", "/tmp"),
        ("run", "--algorithm", "ring", "--world-size", "65"),
        ("run", "--algorithm", "ring", "--ranks-per-machine", "2"),
        ("cost", "--world-size", "1000000000000", "--bytes", "4"),
        ("cost", "--world-size", "4", "--bytes", "1" + "0" * 400),
        ("cost", "--world-size", "4", "--bytes", "4", "--ranks-per-machine", "1" + "0" * 40),
        ("cost", "--world-size", "4", "--bytes", "4", "--pieces", "1025"),
        ("run", "--algorithm", "ring", "--parameter-dim", "999999999999"),
        ("run", "--algorithm", "ring", "--shard-size", "999999", "--parameter-dim", "9999"),
        ("bench", "--ranks", "5000"),
        ("bench", "--rounds", "0"),
        ("bench", "--sizes", "900000GB"),
        ("cost", "--algorithm", "tree", "--collective", "all_gather", "--world-size", "4", "--bytes", "1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_with_status_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_subcommand_that_reads_imports_torch():
    program = """
import sys
from lockstep.cli import main
for words in (["show", "--algorithm", "ring"], ["prove", "--max-world-size", "3"],
              ["cost", "--world-size", "4", "--bytes", "1000"]):
    assert main(["collectives", *words]) == 0
assert not {"torch", "runnable", "pydantic", "yaml"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_every_subcommand_has_a_summary():
    assert {"show", "prove", "cost"} <= set(collectives.SUBCOMMANDS)
    assert all(collectives.SUBCOMMANDS.values())


def test_a_drawn_step_with_parameter_servers_gives_every_worker_the_sum_of_all(capsys):
    from fractions import Fraction

    from lockstep.collectives import parameter_server, plain

    for workers, servers in ((1, 1), (3, 2), (5, 7)):
        size = workers + servers
        schedules = [parameter_server.schedule(rank, workers, servers) for rank in range(size)]
        buffers = [
            [Fraction(rank + 1, index + 2) if rank < workers else Fraction(0) for index in range(11)]
            for rank in range(size)
        ]
        total = [sum(buffer[index] for buffer in buffers) for index in range(11)]
        plain.run_all(schedules, buffers)
        assert buffers[:workers] == [total] * workers
    assert run("show", "--algorithm", "parameter_server", "--world-size", "3", "--servers", "2") == 0
    assert "worker 2  server 1  1       added" in capsys.readouterr().out
    assert run("show", "--algorithm", "ring", "--servers", "2") == 2
    assert "--servers goes with" in capsys.readouterr().err


def test_what_cannot_be_written_is_named_as_the_user_named_it(tmp_path, capsys):
    assert run("show", "--algorithm", "ring", "--svg", str(tmp_path / "absent" / "a.svg")) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/absent/a.svg: No such file or directory\n"


@needs_torch
def test_a_command_that_is_terminated_leaves_no_temporary_folder(tmp_path):
    words = ["collectives", "run", "--algorithm", "ring", "--num-steps", "100000"]
    with subprocess.Popen(
        [sys.executable, "-c", "from lockstep.cli import main; raise SystemExit(main())", *words],
        env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: list(tmp_path.glob("lockstep-*")))
            process.terminate()
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())
