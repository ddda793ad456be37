"""Whether a model fits its data and the weights it is to start from, found out before anything is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lockstep.engine.advice import ran_out
from lockstep.engine.contents import from_pairs
from lockstep.errors import RunFailed
from lockstep.parameters import Parameters
from lockstep.strategies._ema import aliases
from lockstep.strategies._loss import summed_loss
from lockstep.strategies._module_state import evaluating, initialise_lazy, unchanged
from lockstep.strategies._reads import Reads
from lockstep.strategies.base import Batch

MOST_NAMED = 5  # of tensors that do not fit
WRAPPED = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name


def check_model(module: nn.Module, batch: Batch, parameters: Parameters, classes: int) -> Reads:
    """Let two samples through, and say in words what the model cannot take. The model is not changed by it.

    Returns which parts of the model read which weights.
    """
    features, labels = batch.features[:2], batch.labels[:2]
    try:
        initialise_lazy(module, features)
        refuse_what_no_strategy_trains(module)
        reads = Reads(module)
        with unchanged(module), evaluating(module), reads:
            logits = module(features)
        summed_loss(logits, labels)
    except Exception as error:  # whatever a model of the user's own raises
        if ran_out(error) or isinstance(error, RunFailed):
            raise
        shape = "x".join(map(str, features.shape[1:]))
        kind = str(features.dtype).removeprefix("torch.")
        raise RunFailed(
            f"the model {parameters.model.name} cannot take a sample of {parameters.data.name} ({shape}, {kind}): "
            f"{type(error).__name__}: {error}. The traceback is in this rank's log"
        ) from error
    check_head(logits, labels, classes, parameters)
    refuse_sparse_gradients(module, reads)
    return reads


def check_head(logits: Tensor, labels: Tensor, classes: int, parameters: Parameters) -> None:
    """As many logits as there are classes; of tokens there may be more, since vocabularies are padded."""
    found = logits.shape[-1]
    padded = labels.dim() > 1
    if found == classes or (padded and found > classes):
        return
    raise RunFailed(
        f"the model {parameters.model.name} returned {found:,} logits, and {parameters.data.name} has {classes:,} "
        f"classes; allowed: {classes:,}{' or more' * padded}. The function that makes the model is given their number "
        "as its second argument, for the size of its last layer"
    )


def refuse_what_no_strategy_trains(module: nn.Module) -> None:
    """State that a checkpoint does not hold, and weights that the optimizers here do not take."""
    for name, parameter in module.named_parameters():
        if parameter.is_complex() and parameter.requires_grad:
            raise RunFailed(
                f"model.name: {name} is a complex parameter, which the optimizers here do not update; allowed: a real "
                f"one of the shape {(*parameter.shape, 2)} that torch.view_as_complex makes complex in the forward "
                "pass, or a complex one that is not trained"
            )
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise RunFailed(
                f"model.name: {name or 'the model'} ({type(part).__name__}) keeps state by get_extra_state, which may "
                "be anything and which no checkpoint here holds; allowed: tensors, as parameters and registered buffers"
            )


def refuse_sparse_gradients(module: nn.Module, reads: Reads) -> None:
    """Of embeddings that ask for them, whether as modules or as functions."""
    found = list(reads.sparse)
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse and part.weight.requires_grad:
            found.append(f"{name}.weight" if name else "weight")
    if found:
        raise RunFailed(
            f"model.name: {found[0]} gets sparse gradients (sparse=True), which no strategy sums; allowed: sparse=False"
        )


def load_weights(module: nn.Module, run_folder: Path, name: str) -> None:
    """Start from a plain state dict, which the run keeps beside its parameters.

    A file of torch.save is read with ``weights_only=True``; where it holds a mapping with the state dict under
    "model", as this program's own does, that is taken. RunFailed names what does not fit.
    """
    given = _read(next(run_folder.glob("weights.*")))
    own = module.state_dict()
    given = _unwrapped(given, own)
    for key, tensor in own.items():
        if tensor.is_complex() and key in given and given[key].shape == (*tensor.shape, 2):
            given[key] = from_pairs(given[key])  # as checkpoints and exports have them
    given |= {
        name: given[first] for name, first in aliases(module).items() if first in given and name not in given
    }
    given |= {
        first: given[name] for name, first in aliases(module).items() if name in given and first not in given
    }
    problems = [f"{key} is missing" for key in own if key not in given]
    problems += [f"{key} is not in the model" for key in given if key not in own]
    problems += [
        f"{key} has the shape {tuple(given[key].shape)}, the model's {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in given and given[key].shape != tensor.shape
    ]
    problems += [
        f"{key} is of {_kind(given[key])}, the model's of {_kind(tensor)}"
        for key, tensor in own.items()
        if key in given and _sort(given[key]) != _sort(tensor)
    ]
    if problems:
        more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise RunFailed(
            f"model.weights: {name} does not fit the model: {'; '.join(problems[:MOST_NAMED])}{more}. Its options and "
            "the data's classes have to be those that the weights were trained with"
        )
    module.load_state_dict(given)


def _unwrapped(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a wrapper put before every name, unless the model's own names begin so."""
    while given and not given.keys() & own.keys():
        prefix = next((each for each in WRAPPED if all(key.startswith(each) for key in given)), None)
        if prefix is None:
            break
        given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    return given


def _sort(tensor: Tensor) -> tuple[bool, bool]:
    """What a copy does not convert without loss: fractions, and imaginary parts."""
    return tensor.is_floating_point(), tensor.is_complex()


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise RunFailed(f"model.weights: {file} cannot be read: {error}") from None
    except Exception as error:  # weights_only's refusal is an UnpicklingError
        raise RunFailed(f"model.weights: {file} holds more than tensors and is not read: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    usable = isinstance(found, dict) and all(
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        for key, value in found.items()
    )
    if not usable:
        raise RunFailed(
            f"model.weights: {file} is not a plain state dict: names, and a dense tensor for each"
        )
    plain: dict[str, Tensor] = found
    return plain
