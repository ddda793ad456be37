"""What a rank of a pipeline saves and reads: the tensors of its stages, by the names of the whole model."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from lockstep.strategies._layout import slot_like
from lockstep.strategies._pipeline_cut import Ownership
from lockstep.strategies._state import Slice, Slices, Stored


def slices(module: nn.Module, optimizer: Optimizer, names: Ownership, held: Sequence[int]) -> Slices:
    """What a rank that holds these stages adds to a checkpoint: together the ranks give each tensor once."""
    model = {
        name: Slice.whole(tensor)
        for name, tensor in module.state_dict().items()
        if names.states[name] in held
    }
    slots = {
        f"{names.canonical[parameter]}/{slot}": Slice.whole(value)
        for parameter in module.parameters()
        if parameter.requires_grad and names.saved_by(parameter, held)
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    return {"model": model, "optimizer": slots}


def restore(module: nn.Module, optimizer: Optimizer, names: Ownership, stored: Stored) -> None:
    """Read what this rank holds. RuntimeError where the checkpoint is of another model, the same on every rank."""
    saved, every = set(stored.names("model")), names.states.keys()
    if saved != every:
        strange = [f"missing {name}" for name in sorted(every - saved)]
        strange += [f"unexpected {name}" for name in sorted(saved - every)]
        raise RuntimeError("; ".join(strange[:8]))
    module.load_state_dict({name: stored.read("model", name) for name in module.state_dict()})
    slots = stored.names("optimizer")
    for parameter in module.parameters():
        prefix = f"{names.canonical.get(parameter)}/"
        keys = [name for name in slots if name.startswith(prefix) and "/" not in name.removeprefix(prefix)]
        if keys:
            optimizer.state[parameter] = {
                (key := name.removeprefix(prefix)): slot_like(key, stored.read("optimizer", name), parameter)
                for name in keys
            }
