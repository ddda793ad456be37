"""Local SGD: each rank trains by itself, and every so many steps the ranks average what they have become.

With ``outer: average`` that is Stich, "Local SGD Converges Fast and Communicates Little", arXiv 1805.09767; with
``outer: nesterov`` it is DiLoCo (Douillard et al., arXiv 2311.08105, Algorithm 1): the distance that the ranks
went, on average, is taken as the gradient of an outer optimizer, SGD with Nesterov momentum.

What is saved: one set of weights and one of optimizer state, as of any strategy. So that there is one, the ranks
also average where a checkpoint is taken, and then their optimizers' moments too; an uninterrupted run goes on from
those as a resumed one does. Between two averages each rank keeps its own moments. The outer momentum is saved
beside them: this strategy goes on with it, and every other does without.

So when checkpoints are taken is part of the training here. A run that dies and resumes ends in the same bits as one
that did not, since both saved at the same steps; one that was asked to stop has saved at a step of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.plugins import Plugin
from lockstep.strategies._layout import like
from lockstep.strategies.base import Batch, Group, Outcome, Strategy, clock, open_transport
from lockstep.transports.base import Label


class LocalSgd(Strategy):
    """``every`` steps the weights are averaged, weighted by the samples that each rank saw since the last time."""

    scales_loss = False  # the ranks would each have a scale of their own
    reduces_gradients = False  # each rank's optimizer is given its own
    exact = False  # only SGD without momentum that averages at every step is the single process

    def __init__(
        self,
        group: Group,
        *,
        every: Annotated[int, Field(ge=1, le=1_000_000)] = 8,
        outer: Literal["average", "nesterov"] = "average",
        outer_learning_rate: Annotated[float, Field(gt=0)] = 0.7,
        outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        transport: Annotated[str | dict[str, Any], Plugin("transports")] = "shm",
    ) -> None:
        super().__init__(group)
        self.every, self.outer = every, outer
        self.outer_learning_rate, self.outer_momentum = outer_learning_rate, outer_momentum
        self.transport = open_transport(group, transport)
        self.replicated = False
        self._samples = self._all_samples = 0  # since the last average: this rank's, and over all ranks
        self._anchor: dict[str, Tensor] = {}  # the weights that all ranks held after the last average
        self._momentum: dict[str, Tensor] = {}  # of the outer optimizer, the same on all ranks

    def place(self, module: nn.Module) -> nn.Module:
        """Every rank begins with rank 0's weights."""
        self.share_initial_weights(module)
        return super().place(module)

    def steps_to_meeting(self, done: int) -> int:
        """The ranks wait for each other where they average."""
        return self.every - done % self.every

    def forward_backward(self, batch: Batch) -> Outcome:
        """The gradient of the mean over this rank's own samples (zero where it has none)."""
        if not self._anchor:
            self._remember()
        self._samples += batch.samples
        self._all_samples += batch.global_samples
        return super().forward_backward(replace(batch, global_samples=max(batch.samples, 1)))

    def apply(self) -> None:
        """This rank's own optimizer's step; the average, where it is due."""
        super().apply()
        began, sent = clock(), self._sent()
        self.replicated = (self.draws[1] + 1) % self.every == 0
        if self.replicated:
            self._average()
        self.sync_seconds = clock() - began
        self.wire_bytes = self._sent() - sent

    def agree(self) -> None:
        """One set of weights, if it is not one already, and one of moments."""
        if self._all_samples:
            self._average()
        assert self.optimizer is not None
        moments = [value for _, value in self._moments()]
        if moments:
            total = self._summed([value / self.group.world_size for value in moments], "average of moments")
            for value, mean in zip(moments, total, strict=True):
                # Scalars count steps, of which every rank did as many.
                value.copy_(mean if value.dim() else mean.round())

    def buffers_of_rank_0(self) -> Iterator[Tensor]:
        """Counts; statistics are averaged with the weights."""
        return (buffer for buffer in super().buffers_of_rank_0() if not buffer.is_floating_point())

    def _average(self) -> None:
        """The step of the outer optimizer; plain averaging is one of rate 1 without momentum."""
        weights = self._weights()
        share = self._samples / self._all_samples
        moved = [(value.detach() - self._anchor[name]) * share for name, value in weights.items()]
        trained = {name for name, _ in self.module.named_parameters()}
        for (name, value), mean in zip(weights.items(), self._summed(moved, "average"), strict=True):
            nesterov = self.outer == "nesterov" and name in trained
            value.detach().copy_(self._anchor[name].add_(self._outer_step(name, mean) if nesterov else mean))
        self._samples = self._all_samples = 0

    def _outer_step(self, name: str, moved: Tensor) -> Tensor:
        """Sutskever et al.'s form of Nesterov's momentum, as torch.optim.SGD has it."""
        momentum = self._momentum.setdefault(name, torch.zeros_like(moved))
        momentum.mul_(self.outer_momentum).add_(moved)
        return moved.add(momentum, alpha=self.outer_momentum).mul_(self.outer_learning_rate)

    def _summed(self, tensors: list[Tensor], operation: str) -> list[Tensor]:
        """The sums over all ranks; those of one type travel together, through the host's memory."""
        assert self.transport is not None
        self.transport.label = Label(operation, 0, self.draws[1] + 1)
        result = list(tensors)
        for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == kind]
            flat = torch.cat([tensors[place].reshape(-1).cpu() for place in places])
            self.total(flat)
            parts = torch.split(flat, [tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                result[place] = part.view_as(tensors[place]).to(tensors[place].device)
        return result

    def _weights(self) -> dict[str, Tensor]:
        """All that is averaged: parameters that are trained, and statistics such as those of batch norm."""
        found = {name: value for name, value in self._named_parameters()}
        return found | {name: v for name, v in self.module.named_buffers() if v.is_floating_point()}

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        assert self.optimizer is not None
        for name, parameter in self._named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{name}/{key}", value

    def _remember(self) -> None:
        self._anchor = {name: value.detach().clone() for name, value in self._weights().items()}

    def _sent(self) -> int:
        assert self.transport is not None
        return self.transport.wire_bytes

    def state(self) -> dict[str, dict[str, Tensor]]:
        """As any strategy's, and the outer momentum where there is one."""
        state = super().state()
        if self._momentum:
            state["strategy"] = {f"outer_momentum/{name}": value for name, value in self._momentum.items()}
        return state

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take back weights and moments; the outer momentum where this strategy left one."""
        super().load(state)
        prefix = "outer_momentum/"
        found = {key: value for key, value in state.get("strategy", {}).items() if key.startswith(prefix)}
        here = self._weights()
        self._momentum = {
            name: like(value, here[name])
            for name, value in ((key.removeprefix(prefix), value) for key, value in found.items())
        }
        self._remember()

    def describe(self) -> dict[str, Any]:
        """What is sent at each average."""
        count = sum(value.nbytes for value in self._weights().values())
        return {"every": self.every, "outer": self.outer, "average_bytes": count}
