"""What models of images share."""

from lockstep.errors import RunFailed


def channels_of(input_shape: tuple[int, ...], model: str) -> int:
    """The channels of (channels, height, width); 1 for (height, width). RunFailed for anything else."""
    if len(input_shape) not in (2, 3):
        raise RunFailed(
            f"model.name: {model} takes images, (channels, height, width) or (height, width), and the data's samples "
            f"have the shape {input_shape}. Choose data.name: mnist, cifar10 or image_folder, or model.name: mlp"
        )
    return input_shape[0] if len(input_shape) == 3 else 1
