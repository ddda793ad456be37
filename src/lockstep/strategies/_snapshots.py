"""What the gradient hooks saw, parameter by parameter, for the steps that somebody wants to look at."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from lockstep.files import write_atomically

Stage = Literal["local", "reduced"]


class Snapshots:
    """Collects one step at a time and writes it to ``folder/step-NNNNNNNN/rank-N.jsonl``.

    One line a gradient: ``order`` (in which it was last seen), ``stage`` (``local``: this rank's own, as autograd
    finished it; ``reduced``: the mean over the global batch, before clipping), ``shard`` (the virtual shard, or
    null), ``parameter``, ``shape``, ``dtype``, ``norm`` (2-norm, in double precision), ``sha256`` (of the bytes).
    With ``tensors`` the gradients themselves lie beside it in ``rank-N.safetensors``, named
    ``stage/parameter`` or ``local/shard/parameter``.
    """

    def __init__(self, folder: Path, rank: int, steps: list[int], tensors: bool) -> None:
        self._folder, self._rank = folder, rank
        self._steps, self._with_tensors = frozenset(steps), tensors
        self._step = 0
        self._lines: dict[tuple[Stage, int | None, str], dict[str, Any]] = {}
        self._tensors: dict[str, Tensor] = {}
        self.shard: int | None = None

    def begin(self, step: int) -> bool:
        """Whether this step, counted from 1, was asked for; what is taken from now on belongs to it."""
        self._step, self.shard = step, None
        self._lines, self._tensors = {}, {}
        return step in self._steps

    def take(self, stage: Stage, name: str, gradient: Tensor) -> None:
        """Note one gradient as it is by now; what was noted of it before was a part of it."""
        values = gradient.detach().contiguous().cpu()
        gradient_of = stage, self.shard, name
        self._lines.pop(gradient_of, None)  # so that it stands where it was finished
        self._lines[gradient_of] = {
            "stage": stage,
            "shard": self.shard,
            "parameter": name,
            "shape": list(values.shape),
            "dtype": str(values.dtype).removeprefix("torch."),
            "norm": float(torch.linalg.vector_norm(values, dtype=torch.float64)),
            "sha256": hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        if self._with_tensors:
            shard = "" if self.shard is None else f"{self.shard}/"
            self._tensors[f"{stage}/{shard}{name}"] = values.clone()

    def write(self) -> None:
        """Commit the step: each file whole or absent."""
        folder = self._folder / f"step-{self._step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        if self._with_tensors:
            write_atomically(folder / f"rank-{self._rank}.safetensors", save(self._tensors))
        lines = "".join(
            json.dumps({"order": order} | line) + "\n" for order, line in enumerate(self._lines.values())
        )
        write_atomically(folder / f"rank-{self._rank}.jsonl", lines.encode())
        self._lines, self._tensors = {}, {}
