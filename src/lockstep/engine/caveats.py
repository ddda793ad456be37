"""What a model does, as it was observed, that the promise of the same maths at any world size does not cover."""

from collections.abc import Sequence

from lockstep.strategies.base import Strategy

NAMED = 3


def of(strategy: Strategy) -> list[str]:
    """A sentence for each, for the user; empty for most models."""
    seen, found = strategy.observed, []
    if strategy.splits_batch():
        found += _of_several_passes(strategy)
    if seen.attributes:
        found.append(
            f"{_names(seen.attributes)} changes in the forward pass and is no buffer, so no checkpoint holds it: a "
            "resumed run starts from its initial value. register_buffer() would keep it"
        )
    if "" in seen.evaluation_modes:
        found.append(
            "the model's function returned it in evaluation mode, and so it is trained: dropout and batch statistics "
            "stay off. Call train() on it before it is returned if that is not meant"
        )
    return found


def _of_several_passes(strategy: Strategy) -> list[str]:
    seen, found = strategy.observed, []
    parts = _names(sorted({name.rpartition(".")[0] or name for name in seen.buffers}))
    if seen.mixes_samples:
        found.append(
            f"{parts or 'the model'} looks at all samples of a pass together (as batch normalisation does), and a step "
            "has several passes: another world size or micro-batch size trains another model. GroupNorm or LayerNorm "
            "would not"
        )
    elif parts:
        found.append(
            f"{parts} changes its buffers in each pass, and a step has several passes: where its output depends on "
            "them, another world size or micro-batch size trains another model"
        )
    if seen.written:
        found.append(
            f"the forward pass writes to {_names(seen.written)}, and a step has several passes: another world size or "
            "micro-batch size may train another model"
        )
    if seen.draws and strategy.draws_by_shard:
        found.append(
            f"{_names(seen.draws)} draws random numbers by piece of the batch: the same bits at any world size, but "
            "other draws than those of the single process"
        )
    elif seen.draws:
        found.append(
            f"{_names(seen.draws)} draws by rank and pass: a repeated run has the same bits, but another world size or "
            "micro-batch size draws otherwise"
        )
    return found


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(name or "the model's forward pass" for name in names[:NAMED])
    return shown + " and others" * (len(names) > NAMED)
