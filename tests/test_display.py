"""What the console says of training, whatever the moments at which it looks."""

import io
import time
from contextlib import redirect_stdout

from lockstep.board import Board
from lockstep.orchestration.display import Display

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
