"""What was seen of a model before it is trained, as the record keeps it and strategies are told."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from lockstep.strategies._module_state import tensors_of


@dataclass
class Observed:
    """Names are those of the model's parameters, buffers and modules; empty where nothing of the kind was seen."""

    passes: int = 0  # that were looked at
    trained: list[str] = field(default_factory=list)  # parameters that require a gradient
    constants: dict[str, int] = field(
        default_factory=dict
    )  # fingerprints of the buffers that no checkpoint holds
    unused: list[str] = field(default_factory=list)  # parameters that some pass left without a gradient
    buffers: list[str] = field(default_factory=list)  # that a training pass changes
    written: list[str] = field(default_factory=list)  # parameters that a pass itself changes
    written_by_sample: list[str] = field(default_factory=list)  # of those: to other values for other samples
    written_in_evaluation: list[str] = field(default_factory=list)
    mixes_samples: bool = False  # a sample's output depends on which others are in its pass
    compared_in_training: bool = False  # whether strategies are compared in the modes of training
    draws: list[str] = field(default_factory=list)  # modules that draw random numbers in a training pass
    draws_in_evaluation: bool = False
    generators: list[str] = field(default_factory=list)  # of the model's own
    attributes: list[str] = field(default_factory=list)  # plain ones, as Class.name, that a pass changes
    gradient_hooks: list[str] = field(default_factory=list)  # parameters that have some
    shared_memory: list[list[str]] = field(default_factory=list)  # tensors that overlap without being one
    evaluation_modes: list[str] = field(
        default_factory=list
    )  # modules that the model's function left in eval()
    seconds: float = 0.0  # that looking took

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Observed":
        """What a plan says; nothing where it says nothing, as plans of earlier versions."""
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        return cls(**known)

    def record(self) -> dict[str, Any]:
        """For distributed.json."""
        return asdict(self)


def shared_memory(module: nn.Module) -> list[list[str]]:
    """Parameters and buffers that overlap in memory without being one tensor."""
    places: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
    for name, tensor in tensors_of(module).items():
        if tensor.is_meta or not tensor.numel() or not hasattr(tensor, "untyped_storage"):
            continue
        first, last = _extent(tensor)
        place = str(tensor.device), tensor.untyped_storage().data_ptr()
        places.setdefault(place, []).append((name, first, last))
    found: list[list[str]] = []
    for each in places.values():
        each.sort(key=lambda one: one[1])
        group, end = [each[0][0]], each[0][2]
        for name, first, last in each[1:]:
            if first < end:
                group.append(name)
            else:
                found += [group] if len(group) > 1 else []
                group = [name]
            end = max(end, last)
        found += [group] if len(group) > 1 else []
    return found


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte in its storage, and the one after the last."""
    reach = sum(
        int(size - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    first = int(tensor.storage_offset()) * tensor.element_size()
    return first, first + (reach + 1) * tensor.element_size()
