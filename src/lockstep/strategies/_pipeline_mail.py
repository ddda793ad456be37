"""The messages of a pipeline: what ranks send each other between stages, in the host's memory.

Messages of one rank to another arrive in the order in which they were sent, and that order is known to both, because
both have all rows of the schedule: a message that comes before its turn is kept.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lockstep.collectives.pipeline import Action, Schedule
from lockstep.transports.base import Label, Pending, Transport

Key = tuple[str, int, int]  # "F": a stage's output, "I": the gradient of its input; stage, micro-batch


class Mail:
    """The messages of one pass through a schedule.

    ``make`` makes the host's memory that one is received into, and ``device`` is where it is computed with.
    """

    def __init__(
        self,
        schedule: Schedule,
        transport: Transport,
        step: int,
        make: Callable[[str, int, int], Tensor],
        device: torch.device,
    ) -> None:
        self._transport, self._step, self._make, self._device = transport, step, make, device
        self._placement = schedule.placement
        self._here: dict[Key, Tensor] = {}
        self._sending: list[Pending] = []
        self._coming: dict[int, deque[Key]] = {
            rank: deque(self._sent_here(row))
            for rank, row in enumerate(schedule.rows)
            if rank != transport.rank
        }

    def _reader(self, key: Key) -> int | None:
        kind, stage, _ = key
        stage += 1 if kind == "F" else -1
        return self._placement[stage] if 0 <= stage < len(self._placement) else None

    def _sent_here(self, row: Sequence[Action]) -> list[Key]:
        keys = [product(action) for action in row if action.kind != "W"]
        return [key for key in keys if self._reader(key) == self._transport.rank]

    def _label(self, key: Key) -> int:
        name = "activation" if key[0] == "F" else "input gradient"
        self._transport.label = Label(f"pipeline {name}", key[1], self._step)
        return key[2]

    def send(self, key: Key, tensor: Tensor) -> None:
        """To the rank that needs it next; nothing where none does."""
        reader = self._reader(key)
        if reader == self._transport.rank:
            self._here[key] = tensor
        elif reader is not None:
            tag = self._label(key)
            self._sending.append(self._transport.send(tensor.cpu().contiguous(), reader, tag))

    def take(self, key: Key) -> Tensor:
        """What was sent under this key; waits for it."""
        if key not in self._here:
            source = self._placement[key[1]]
            coming = self._coming[source]
            while key not in self._here:
                first = coming.popleft()
                buffer = self._make(*first)
                tag = self._label(first)
                self._transport.recv(buffer, source, tag).wait()
                self._here[first] = buffer.to(self._device)
        return self._here.pop(key)

    def finish(self) -> None:
        """Return when everything is sent."""
        for pending in self._sending:
            pending.wait()


def product(action: Action) -> Key:
    """What an action leaves for another stage."""
    return ("F" if action.kind == "F" else "I"), action.stage, action.micro_batch
