"""What the console says of training, whatever the moments at which it looks."""

import io
import re
import time
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.orchestration.display import NARROWEST_BAR, SPINNER_COLUMNS, Display
from lockstep.orchestration.meter import Meter

PLAN = {"steps": 300, "steps_per_epoch": 10, "global_batch_size": 12_800}


def shown(tmp_path, began_after: int) -> str:
    """The plain lines of a training that was over before the first look."""
    Board.create(tmp_path / "board", 1).close()
    out = io.StringIO()
    with redirect_stdout(out):
        display = Display()
    with (
        Board(tmp_path / "board") as board,
        display.training(board, PLAN),
        Board(tmp_path / "board", rank=0) as rank,
    ):
        rank.write("start", began_after)
        rank.write("first_step", time.monotonic() - 200)
        rank.write("samples", 12_800)
        rank.write("loss", 0.125)
        rank.write("step", 300)
    return out.getvalue()


def test_a_training_faster_than_the_display_still_shows_its_loss_and_speed(tmp_path):
    text = shown(tmp_path, 0)
    assert "epoch 30/30  step 300/300  loss 0.1250" in text
    assert 18_000 < float(text.split("samples/s")[0].split()[-1].replace(",", "")) <= 19_200


def test_the_speed_of_a_resumed_run_counts_only_the_steps_that_it_did(tmp_path):
    text = shown(tmp_path, 290)
    assert 600 < float(text.split("samples/s")[0].split()[-1].replace(",", "")) <= 640


def meter_of(tmp_path, shares):
    """The meter's line after a step in which each rank had a loss over so many samples."""
    board = Board.create(tmp_path / "board", len(shares))
    for number, (loss, samples) in enumerate(shares):
        with Board(tmp_path / "board", rank=number) as rank:
            for field, value in (("samples", samples), ("loss", loss), ("step", 3_000)):
                rank.write(field, value)
            rank.write("first_step", time.monotonic() - 100)
    return Meter(board, {"steps": 300_000, "steps_per_epoch": 1_000, "global_batch_size": 128})


def test_the_loss_on_the_bar_is_the_mean_over_samples(tmp_path):
    assert "loss 0.4000" in meter_of(tmp_path, [(0.1, 96), (1.3, 32)]).text()
    assert "loss 0.5000" in meter_of(tmp_path, [(0.5, 64), (0.0, 0)]).text()  # a rank that counts nothing


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_terminals_lines_end_between_words_and_the_bar_stays_on_one(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    display = Display()
    display.console = Console(
        file=io.StringIO(), force_terminal=True, width=columns, no_color=True, soft_wrap=True
    )
    note = (
        "ddp on 2 ranks, 1 thread each, 60 steps of 128 samples (64 a rank); a rank needs activations 462 KB"
    )
    display.say(note)
    display.step_finished("setup_distributed", "succeeded", 3.5)
    display.warn(f"a note of many words: {note}")
    judged = {
        "step": 60,
        **{split: {"accuracy": 0.5, "loss": 1.25} for split in ("train", "validation", "test")},
    }
    spent = dict.fromkeys(("compute_seconds", "sync_seconds", "data_seconds", "cpu_seconds"), 12.5)
    ranks = [{"rank": 0, "samples": 7_548, "samples_per_second": 9e6, "peak_rss_bytes": 4e8, **spent}]
    training = {"samples": 7_548, "samples_per_second": 9e6, "waiting_share": 0.5}
    steps = [(name, 3.25) for name in ("prepare_data", "setup_distributed", "train", "aggregate_metrics")]
    found = {"evaluation": {"final": judged}, "ranks": ranks, "training": training}
    display.closing(Run(tmp_path), found, steps)
    text = display.console.file.getvalue()
    words = text.split()
    for word in (*note.split(), "validation", "9,000,000", "0.5000"):
        assert word in words, text
    assert all(f"{name} 3.25 s" in text for name, _ in steps)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    if columns <= 120:  # what goes on stands below where it began
        assert re.fullmatch(r" {31}\S.*", lines[1])
    assert [line for line in lines if len(line) > columns and "/" not in line] == []
    line = meter_of(tmp_path, [(0.1, 96)]).text(columns - SPINNER_COLUMNS - NARROWEST_BAR)
    assert len(line) <= columns - SPINNER_COLUMNS - NARROWEST_BAR and "step 3,000/300,000" in line
    assert ("epoch" in line) == (columns > 80)
