"""The seam between the training loop and the ways of sharing its work. The defaults are the single process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lockstep import plugins
from lockstep.collectives import execute
from lockstep.collectives.schedule import make
from lockstep.strategies import _ema
from lockstep.strategies._layout import slots_like
from lockstep.strategies._loss import correct, summed_loss
from lockstep.strategies._observed import Observed
from lockstep.strategies._passes import Passes
from lockstep.strategies._reads import Reads
from lockstep.strategies._shares import Batch, Group, Outcome, Shard, clock, key
from lockstep.strategies._state import Slice, Slices, Stored
from lockstep.transports.base import Transport

__all__ = ["Batch", "Group", "Outcome", "Shard", "Strategy", "clock", "key", "open_transport"]


class Strategy:
    """One rank of one way of training. Subclasses override what they share out."""

    exact = True  # equals the single process up to rounding
    draws_by_shard = False  # random draws of the forward pass do not depend on the number of ranks
    reduces_gradients = True  # after `sync` every rank holds the gradient over all ranks
    updates_weights = True  # `apply` runs this rank's optimizer on this rank's parameters
    scales_loss = True  # `sync` sees scaled gradients, and may find that they overflowed
    replicated = True  # after this step every rank holds the same weights, and a rank that parts is an error
    meets_in_passes = False  # ranks wait for each other in every pass, so that all have to make as many
    counts = True  # the samples that it sees are counted here, and by no other rank
    divides_parameters = False  # a rank's pass does not go through the user's own parameters, whole
    sharded = (
        False  # no rank holds all of the state: each saves its own slices, and reads those that it needs
    )

    def __init__(self, group: Group) -> None:
        self.group = group
        self.model: nn.Module = nn.Identity()  # what the forward pass calls
        self.module: nn.Module = self.model  # the user's module inside it, whose names the checkpoint keeps
        self.optimizer: Optimizer | None = None
        self.aliases: dict[str, str] = {}  # further names of weights that the model uses in several places
        self.reads: Reads | None = None  # which modules read which weights, as a pass has shown
        self.notes: list[str] = []  # what the user is to be told of the model
        self.max_grad_norm: float | None = None
        self.ema_decay: float | None = None
        self.passes = Passes()
        self.observed = Observed()  # what the model was seen to do; known before `place`
        self.transport: Transport | None = None  # where it has one of ours
        self.draws: tuple[int, int] = (0, 0)  # (seed, step): what random draws of the next pass are keyed by
        self.sync_seconds = 0.0  # of the last step: spent with no gradient of its own left to compute
        self.wire_bytes = 0  # of one step, sent by this rank
        self.measured: dict[
            str, float
        ] = {}  # of the last step: what it alone can tell, for the line of metrics

    @classmethod
    def share(
        cls,
        module: nn.Module,
        options: dict[str, Any],  # noqa: ARG003 - here and below: for those that divide the model
        world_size: int,  # noqa: ARG003
        rank: int,  # noqa: ARG003
    ) -> dict[str, int]:
        """How many elements of each parameter a rank holds, for the forecast; ``module`` may be on meta."""
        return {name: parameter.numel() for name, parameter in module.named_parameters()}

    @classmethod
    def gathered(
        cls,
        module: nn.Module,  # noqa: ARG003
        options: dict[str, Any],  # noqa: ARG003
        world_size: int,  # noqa: ARG003
        in_pieces: bool,  # noqa: ARG003
    ) -> int:
        """Bytes that a rank holds beside its share while it computes, for the forecast: of weights and gradients.

        ``in_pieces``: a rank's share of the batch goes through in several micro-batches.
        """
        return 0

    def shard(self) -> Shard:
        """Which slice of each global batch is this rank's: one a rank, unless overridden."""
        return Shard(self.group.rank, self.group.rank + 1, self.group.world_size)

    def splits_batch(self) -> bool:
        """Whether a global batch goes through the model in several passes, of one rank or of many."""
        return self.shard().parts > 1 or self.passes.micro_batch_size is not None

    def place(self, module: nn.Module) -> nn.Module:
        """Take the module in, before the optimizer exists; returns what the forward pass calls."""
        self.module = self.model = module
        return self.model

    def optimized(self) -> nn.Module:
        """What holds the parameters that the optimizer is made for and updates; asked once, after ``place``."""
        return self.module

    def fingerprinted(self) -> nn.Module:
        """What holds the parameters that this rank writes fingerprints of: a reader adds up those of slices.

        Where a tensor is in slices and each slice on several ranks, one of these ranks has it here.
        """
        return self.module

    def settle(self, batch: Batch) -> None:
        """Do, before the state is loaded, whatever would else make the first step differ from the later ones."""

    def forward_backward(self, batch: Batch) -> Outcome:
        """Leave in ``.grad`` this rank's part of the gradient of the mean loss over the *global* batch."""
        self.seed_draws("rank", self.group.rank)
        return self.accumulate(batch)

    def accumulate(self, batch: Batch) -> Outcome:
        """Forward and backward in micro-batches; what the ranks reduce, they reduce in the last one's."""
        size = self.passes.micro_batch_size
        largest = -(-batch.global_samples // self.shard().parts)  # share of a rank, as every rank can tell
        least = -(-largest // size) if size and self.meets_in_passes else 1
        pieces = batch.micro_batches(size, least)
        loss, hits = 0.0, 0.0
        for number, piece in enumerate(pieces, start=1):
            with self.accumulating() if number < len(pieces) else contextlib.nullcontext():
                outcome = self.one_pass(piece)
            loss += outcome.loss * piece.samples
            hits += outcome.correct
        return Outcome(loss / batch.samples if batch.samples else 0.0, hits)

    def accumulating(self) -> contextlib.AbstractContextManager[object]:
        """Around the forward and backward pass of every micro-batch but the last: gradients stay here."""
        return contextlib.nullcontext()

    def seed_draws(self, kind: str, number: int) -> None:
        """No generator state is saved: what the forward pass draws depends on (seed, step, who) alone."""
        self.passes.seed(key(*self.draws, kind, number))

    def one_pass(self, batch: Batch) -> Outcome:
        """Forward and backward of some rows."""
        with self.passes.autocast():
            logits = self.model(batch.features)
        total = summed_loss(self.passes.full_precision(logits), batch.labels)
        scale = self.gradient_scale * self.passes.loss_scale.value
        self.backward(total * (batch.weight * scale / batch.global_samples))
        if not batch.weight:
            return Outcome(0.0, 0)
        with torch.no_grad():
            hits = correct(logits, batch.labels)
        return Outcome(float(total.detach()) / batch.samples, hits)

    def backward(self, loss: Tensor) -> None:
        """The backward pass; what overlaps with it, overlaps here."""
        loss.backward()  # type: ignore[no-untyped-call]

    @property
    def gradient_scale(self) -> float:
        """Undoes what the reduction divides by: a sum over ranks of shares over the global count is the mean."""
        return 1.0

    def sync(self) -> float:
        """Make the gradients agree over the ranks and clip them; returns their norm before clipping."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        value = self.passes.loss_scale.undo(gradients, float(norm))
        if self.max_grad_norm is not None and value > self.max_grad_norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / value)
        return value

    def apply(self) -> None:
        """The optimizer's step."""
        assert self.optimizer is not None
        if not self.passes.loss_scale.overflowed:
            self.optimizer.step()
            if self.ema_decay is not None:
                _ema.advance(self.optimizer, self.ema_decay)
        self.optimizer.zero_grad(set_to_none=True)

    def steps_to_meeting(self, done: int) -> int | None:  # noqa: ARG002 - one step here, whichever it is
        """After how many more steps every rank is sure to have waited for rank 0, ``done`` being done.

        A request to stop takes effect there. None where a further process decides when to stop.
        """
        return 1

    def agree(self) -> None:
        """Bring all ranks to one state, before it is saved. Every rank calls it after the same step."""

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Rank 0's buffers for all, as those are the ones that are saved: what is judged is then what is saved.

        Statistics of batches differ between ranks, and where their micro-batches do, so do counts of passes.
        """
        for buffer in self.buffers_of_rank_0():
            self.take_from_rank_0(buffer)

    def buffers_of_rank_0(self) -> Iterator[Tensor]:
        """Those that are saved."""
        for part in self.module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                if name not in part._non_persistent_buffers_set:
                    yield buffer

    def describe(self) -> dict[str, Any]:
        """What it decided for itself, for the record."""
        return {}

    def share_initial_weights(self, module: nn.Module) -> None:
        """Rank 0's weights and buffers for all, also where the constructor draws from a generator that nobody seeds."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.take_from_rank_0(tensor)

    @torch.no_grad()
    def take_from_rank_0(self, tensor: Tensor) -> None:
        """Rank 0's values for all ranks, in place: the others contribute zeros to a sum."""
        if self.group.world_size == 1 or not tensor.numel():
            return
        values = tensor.detach()
        pairs = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
        # Whole numbers and booleans travel in a type that holds them all.
        kind = pairs.dtype if pairs.is_floating_point() else torch.int64
        flat = pairs.reshape(-1).to(kind, copy=True)
        if self.group.rank:
            flat.zero_()
        shared = self.total(flat).view_as(pairs).to(pairs.dtype)
        if not torch.equal(shared, pairs):  # else it may be of memory that cannot be written to
            values.copy_(torch.view_as_complex(shared) if values.is_complex() else shared)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, the same on each."""
        if self.transport is not None:
            schedule = make("all_reduce", "direct", self.group.rank, self.group.world_size)
            execute.run(schedule, self.transport, values.view(-1))
        return values

    def state(self) -> dict[str, dict[str, Tensor]]:
        """``model`` and ``optimizer``, whole, keyed by parameter name (optimizer: ``name/key``).

        A strategy may add ``strategy``: what it alone can use when it goes on, and all others do without.
        """
        assert self.optimizer is not None
        slots = {
            f"{name}/{key}": value
            for name, parameter in self._named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        return {"model": dict(self.module.state_dict()), "optimizer": slots}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take back what ``state`` gave, under this or any other strategy and world size."""
        assert self.optimizer is not None
        self.module.load_state_dict(state["model"])
        for name, parameter in self._named_parameters():
            if slots := slots_like(state["optimizer"], name, parameter):
                self.optimizer.state[parameter] = slots

    def slices(self) -> Slices:
        """What this rank adds to a checkpoint, where the strategy is ``sharded``: see ``_state.Slice``.

        Every rank calls it after the same step. ``state`` and ``load`` are then not called.
        """
        return {
            part: {name: Slice.whole(tensor) for name, tensor in tensors.items()}
            for part, tensors in self.state().items()
        }

    def restore(self, stored: Stored) -> None:
        """Take back what any strategy saved. A ``sharded`` one reads only the blocks that it holds."""
        self.load(stored.whole())

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (
            (name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad
        )

    def close(self) -> None:
        """Leave the group. Called once, when everything is written."""
        if self.transport is not None:
            self.transport.close()


def open_transport(group: Group, chosen: str | dict[str, Any]) -> Transport:
    """The transport that an option names."""
    options = dict(chosen) if isinstance(chosen, dict) else {"name": chosen}
    transport: Transport = plugins.load("transports", options.pop("name"))(group, **options)
    return transport
