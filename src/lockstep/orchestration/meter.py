"""How far a training is, in a line: step, loss, speed and time left, from the board."""

import math
import time
from typing import Any

from lockstep.board import Board

LEAST_NEEDED = ("epoch", "speed", "loss")  # in the order in which a narrow terminal does without them


def duration(seconds: float) -> str:
    """0.42 s, 12.3 s, 4 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Meter:
    """Step, loss, speed and time left, from the board."""

    def __init__(self, board: Board, plan: dict[str, Any]) -> None:
        self._board, self._plan = board, plan

    @property
    def step(self) -> int:
        """Updates that every rank has done."""
        return min(self._board.integer(rank, "step") for rank in range(self._board.world_size))

    def _loss(self) -> float:
        """The mean over the samples of the ranks' last steps. A rank with none counts none, or those of another."""
        ranks = range(self._board.world_size)
        shares = [(self._board.number(rank, "loss"), self._board.integer(rank, "samples")) for rank in ranks]
        samples = sum(count for _, count in shares)
        return sum(loss * count for loss, count in shares if count) / samples if samples else math.nan

    def text(self, width: int | None = None) -> str:
        """One line, of as many columns: what is needed least is left out."""
        started = self._board.number(0, "first_step")
        if not started:
            waited = time.monotonic() - self._board.number(0, "launched")
            return f"starting {self._board.world_size} ranks (importing torch) {waited:.0f} s"
        step, steps = self.step, self._plan["steps"]
        # From what the ranks wrote, not from the first look: all the steps may lie between two looks.
        elapsed, done = time.monotonic() - started, step - self._board.integer(0, "start")
        epochs = steps // self._plan["steps_per_epoch"]
        epoch = min(step // self._plan["steps_per_epoch"] + 1, epochs)
        words = {"epoch": f"epoch {epoch}/{epochs}", "step": f"step {step:,}/{steps:,}"}
        if done:
            rate = done / elapsed
            words["loss"] = f"loss {self._loss():.4f}"
            words["speed"] = f"{rate * self._plan['global_batch_size']:,.0f} samples/s"
            if step < steps:
                words["left"] = f"{duration((steps - step) / rate)} left"
        for name in LEAST_NEEDED:
            if width is None or len("  ".join(words.values())) <= width:
                break
            words.pop(name, None)
        return "  ".join(words.values())
