"""Finding ranks whose weights have parted, without a message of its own."""

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.engine.metrics import combined
from lockstep.errors import RunFailed
from lockstep.files import read_json_lines


class Watch:
    """Compares fingerprints through the board, one turn late.

    When a rank posts turn t, it has been through a collective since every other rank posted turn t - 1, so
    those can be compared without waiting for anybody, and no alarm is false.
    """

    def __init__(self, run: Run, board: Board, attempt: int) -> None:
        self._run, self._board, self._attempt = run, board, attempt
        self._turn = 0

    def compare(self, step: int, prints: dict[str, int]) -> None:
        """Post this rank's fingerprints after ``step``, and raise if an earlier turn's differ among ranks."""
        self._turn += 1
        self._board.post_digest(step, combined(prints), self._turn)
        self._raise_if_parted(self._turn - 1)

    def finish(self) -> None:
        """Compare the last turn; only after a collective that every rank entered having posted it."""
        self._raise_if_parted(self._turn)

    def _raise_if_parted(self, turn: int) -> None:
        found = self._board.differing_ranks(turn)
        if found is None:
            return
        step, digests = found
        values = list(digests.values())
        usual = max(values, key=lambda value: (values.count(value), value == digests[0]))
        parted = [rank for rank, value in digests.items() if value != usual]
        raise RunFailed(
            f"the ranks hold different weights at step {step}: rank {', '.join(map(str, parted))} parted from "
            f"the others{self._where(step, parted[0], next(r for r in digests if r not in parted))}. "
            "Checkpoints from before that step are sound; look for code that updates a model on one rank only",
            "diverged",
        )

    def _where(self, step: int, rank: int, other: int) -> str:
        """The names of the tensors that differ, from what both ranks have written."""
        mine, others = (self._prints(step, each) for each in (rank, other))
        names = [name for name in mine if name in others and mine[name] != others[name]]
        return f" in {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else ""

    def _prints(self, step: int, rank: int) -> dict[str, int]:
        for line in reversed(read_json_lines(self._run.metrics_file(rank, self._attempt))):
            if line.get("step") == step and isinstance(line.get("parameter_digests"), dict):
                return line["parameter_digests"]  # type: ignore[no-any-return]
        return {}
