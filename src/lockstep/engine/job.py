"""What the loop of one rank works with, and what it has come to."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.engine.batches import Batches
from lockstep.engine.divergence import Watch
from lockstep.engine.features import Features
from lockstep.engine.metrics import Metrics
from lockstep.parameters import Parameters
from lockstep.strategies.base import Strategy


@dataclass
class Job:
    """Everything that the loop of one rank works with."""

    run: Run
    parameters: Parameters
    strategy: Strategy
    batches: Batches
    validation: tuple[Features, Tensor]
    board: Board
    metrics: Metrics
    watch: Watch
    steps: int
    rank: int
    best: dict[str, Any] | None = None  # the checkpoint with the lowest validation loss
    told_not_finite: bool = False  # that a validation loss was NaN or infinite
    validated: dict[str, Any] | None = None  # the last epoch's validation
    saved_step: int = -1
    epoch_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, correct, samples
    epoch_began: float = 0.0
    held: dict[str, int] = field(default_factory=dict)  # bytes by kind, as of the first step that was applied
