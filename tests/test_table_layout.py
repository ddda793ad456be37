"""Tables on terminals of any width: what is left out, and that nothing is broken in the middle."""

import io
import re
import sys
from argparse import ArgumentParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exporting
from lockstep.catalog.list_text import table
from lockstep.catalog.table_layout import GAP, clipped, fit, width_of, wrapped
from lockstep.catalog.text import Table
from lockstep.cli import list as list_command
from lockstep.cli import show as show_command

ROW = {
    "run_id": "20261120-115146-3f9a2c", "status": "failed", "cause": "out of memory", "tag": "wide-sweep-2",
    "strategy": "allreduce", "world_size": 16, "dataset": "image_folder", "model": "vision:resnet50",
    "accuracy": 0.954, "loss": 0.0874, "test_accuracy": 0.9, "test_loss": 0.12, "samples_per_second": 20219.0,
    "seconds": 812.0, "age_seconds": 7000.0,
}  # fmt: skip


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def lines_of(layout):
    return [GAP.join(cells).rstrip() for cells in [layout.heading, *layout.body]]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_list_has_a_line_for_each_run_and_keeps_what_runs_are_chosen_by(width):
    layout = fit(table([ROW, {**ROW, "cause": None, "tag": None}]), width)
    heading, *body = lines_of(layout)
    assert len(body) == 2 and max(map(width_of, [heading, *body])) <= width
    for word in ("run", "status", "accuracy", "loss"):
        assert word in heading.split()
    assert all("95.4%" in line and "0.08740" in line for line in body)
    assert ("20,219" in body[0]) == ("samples/s" not in layout.left_out)
    assert bool(layout.left_out) == (width < 200)


def test_what_the_list_was_sorted_by_is_left_out_last():
    assert "samples/s" in fit(table([ROW]), 80).left_out
    layout = fit(table([ROW], wanted=["samples/s"]), 80)
    assert "samples/s" not in layout.left_out and "20,219" in lines_of(layout)[1]


def test_a_long_name_is_clipped_and_a_figure_never_is():
    long = Table([("x" * 70, "12,345,678"), ("y", "1")], ("run", "samples"), frozenset({1}))
    _, first, second = lines_of(fit(long, 40))
    assert first == "x" * 27 + "…" + "  12,345,678" and second.split() == ["y", "1"]
    narrow = fit(Table([("12,345", "67,890")], ("one", "two"), frozenset({0, 1})), 8)
    assert lines_of(narrow) == ["   one", "12,345"] and narrow.left_out == ["two"]


def test_facts_go_on_below_each_other_between_words_and_a_path_stays_whole():
    path = "/a/" + "long/" * 20
    facts = Table([("code", "no commit on main, with changes that were not committed"), ("report", path)])
    lines = lines_of(fit(facts, 40))[1:]
    assert lines[:2] == ["code    no commit on main, with changes", "        that were not committed"]
    assert lines[2:] == [f"report  {path}"]


@given(st.text(alphabet="ab 漢e\u0301", max_size=80), st.integers(4, 30))
def test_wrapping_and_clipping_keep_to_the_width_and_lose_no_word(text, width):
    assert width_of(clipped(text, width)) <= width
    lines = wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(width_of(line) <= width or len(line.split()) == 1 for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_list_and_show_break_no_word_on_a_terminal(tmp_path, monkeypatch, width):
    run = exporting.build(tmp_path / ".catalog", "a-run", epochs=2)
    for command, words in ((list_command, []), (show_command, [run.run_id])):
        parser = ArgumentParser()
        command.configure(parser)
        arguments = parser.parse_args([*words, "--catalog", str(run.catalog)])
        said = {}
        for columns in (width, 5000):
            terminal = Terminal()
            monkeypatch.setattr(sys, "stdout", terminal)
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("NO_COLOR", "1")
            assert command.run(arguments) == 0
            said[columns] = terminal.getvalue()
        known = set(re.findall(r"\S+", said[5000])) | {"not", "shown", "at", "this", "width:"}
        for line in said[width].splitlines():
            assert width_of(line) <= width or len(line.split()) <= 2  # a path by its name
            for word in line.split():
                assert {word, word.rstrip(",")} & known or set(word) <= set("─█▒▏") or word.endswith("…"), (
                    word
                )
