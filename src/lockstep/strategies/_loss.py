"""The loss of classification and of language models alike: cross entropy, one prediction or several a sample."""

from torch import Tensor, nn

from lockstep.errors import RunFailed


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over samples of the mean over a sample's predictions.

    ``logits`` is (samples, classes) with ``labels`` (samples,), or (samples, length, classes) with (samples,
    length). Samples weigh the same however many predictions they hold, so every mean over samples stands.
    """
    if not isinstance(logits, Tensor):
        raise RunFailed(
            f"the model returned {type(logits).__name__}, allowed: one tensor of logits, (samples, classes) or "
            "(samples, length, classes). See model.name"
        )
    if logits.shape[:-1] != labels.shape:
        raise RunFailed(
            f"the model returned {_shape(logits)} for labels of {_shape(labels)}, allowed: one row of logits for "
            f"every label, {_shape(labels)[:-1].rstrip(',')}, classes). See model.name and data.name"
        )
    total = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), reduction="sum"
    )
    return total / predictions(labels) if labels.dim() > 1 else total


def predictions(labels: Tensor) -> int:
    """How many predictions a sample holds: 1, or its length."""
    return labels[:1].numel() if labels.dim() > 1 else 1


def correct(logits: Tensor, labels: Tensor) -> float:
    """How many samples are recognised; of a sample with several predictions, the share that is right."""
    hits = int((logits.argmax(dim=-1) == labels).sum())
    return hits / predictions(labels) if labels.dim() > 1 else hits


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
