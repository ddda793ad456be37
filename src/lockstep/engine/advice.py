"""What a person can change where torch only says what went wrong."""

import contextlib
from collections.abc import Iterator

import torch

from lockstep.errors import RunFailed

ONE_SAMPLE = (
    "a batch normalisation was given a single sample, of which it can take no statistics: {where} one piece of a batch "
    "was that small, often the last of an epoch. Choose training.global_batch_size, training.micro_batch_size and "
    "distributed.world_size so that none is, or a normalisation that looks at each sample alone (model.norm=group)"
)
TWICE = (
    "ddp: {where} the gradient of a parameter came twice in one backward pass, as reentrant activation checkpointing "
    "makes it. Use torch.utils.checkpoint with use_reentrant=False, or distributed.strategy={{name: allreduce, "
    "overlap: false}}, which takes it"
)
KNOWN = (("Expected more than 1 value per channel", ONE_SAMPLE), ("mark a variable ready only once", TWICE))


def ran_out(error: Exception) -> bool:
    """Whether it was for want of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def errors_in_words(where: str) -> Iterator[None]:
    """Say what to change, where that is known: memory that runs out, of a GPU or of the host in one allocation, and
    what a model and the way that its work is shared out do not agree on.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        if ran_out(error):
            raise RunFailed(
                f"memory ran out {where}: {first}. Try a smaller training.micro_batch_size, "
                "training.activation_checkpointing=true, training.precision=bf16, distributed.strategy=fsdp, which "
                "shares the weights out, or a smaller model",
                "out of memory",
            ) from error
        for words, advice in KNOWN:
            if words in str(error):
                raise RunFailed(advice.format(where=where)) from error
        raise
