"""The sections of a parameter file: one frozen model each, with the type, the limits and the default of every key."""

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lockstep.choices import CONFIG, Share
from lockstep.former_values import current

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Section(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", **CONFIG)


class Choice(Section):
    """Something chosen by name, with every option of it, defaults included."""

    name: str
    options: dict[str, Any]


class Augmentation(Section):
    """How training images are varied: a function of (seed, epoch, sample), so the same at any world size."""

    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 0  # pixels added on each side before the crop
    flip: bool = False  # mirror half of the images, left to right
    crop_scale: (
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] | None
    ) = None  # an image folder's: cut out this share of the image, of another shape, and scale that up

    @property
    def on_pixels(self) -> bool:
        """Whether anything is done to an image that is read already."""
        return bool(self.crop_padding or self.flip)


class Data(Choice):
    """The dataset, how much of it is kept from training, and how what is left is varied."""

    validation_fraction: Share = 0.1
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    augmentation: Augmentation = Augmentation()


class Model(Choice):
    """The model, and the weights that it starts from: a file with a plain state dict, or null for random ones."""

    weights: str | None = None


class Training(Section):
    """What is optimized, how, and for how long."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    global_batch_size: Count = 128  # samples per step over all ranks
    optimizer: Choice
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    schedule: Choice
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    micro_batch_size: Count | None = None  # samples in one pass of a rank; null: its whole share
    precision: Literal["fp32", "fp64", "bf16", "fp16"] = (
        "fp32"  # the last two: passes only, weights stay fp32
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # of a moving average of the weights; null: none
    )
    channels_last: bool = False  # images and their weights with the channels innermost
    tf32: bool = False  # on a GPU: faster products of fp32, with 10 bits where there were 23
    activation_checkpointing: bool = False  # blocks compute their activations again in the backward pass
    compile: bool = False  # torch.compile, which takes a while before the first step
    digest_every: Count = 50  # steps between fingerprints of the weights


class Distributed(Section):
    """How the work is shared among processes."""

    world_size: Annotated[int, Field(ge=1, le=1024)] = 2
    strategy: Choice
    launcher: Annotated[
        Literal["fork_server"], BeforeValidator(lambda name: current("distributed.launcher", name))
    ] = "fork_server"
    # How that server makes a rank: forked from itself, or a new interpreter that imports torch for itself.
    start_method: Literal["forkserver", "spawn"] = "forkserver"
    device: Literal["cpu", "cuda", "auto"] = "cpu"  # auto: cuda where there is a GPU for each rank
    backend: Literal["gloo"] = "gloo"  # between processors; between GPUs it is NCCL
    threads_per_rank: Annotated[int, Field(ge=1, le=1024)] | None = None  # null: cores / ranks
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class Checkpoint(Section):
    """When the state is saved; both null means only at the end."""

    every_epochs: Count | None = 1
    every_steps: Count | None = None
    keep: Annotated[int, Field(ge=2, le=1_000_000_000)] = 3
    closing_limit_gb: Annotated[float, Field(ge=0)] = (
        8.0  # of tensors that no rank holds whole: above it, no .pt
    )


class Parameters(Section):
    """All parameters of a run."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 42
    data: Data
    model: Model
    training: Training
    distributed: Distributed
    checkpoint: Checkpoint = Checkpoint()

    def to_value(self) -> dict[str, Any]:
        """A plain mapping, every default written out; a choice has its name first, then its options."""
        value = _plain(self)
        assert isinstance(value, dict)
        return value


def _plain(value: object) -> object:
    if isinstance(value, Choice):
        beside = {key: _plain(getattr(value, key)) for key in type(value).model_fields if key != "options"}
        return {"name": value.name, **beside, **copy.deepcopy(value.options)}
    if isinstance(value, Section):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    return value
