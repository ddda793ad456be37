"""Residual networks of 18, 34 and 50 layers.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2015), arXiv 1512.03385, table 1; the stride
of a bottleneck is at its 3 x 3 convolution (Goyal et al., arXiv 1706.02677, section 5.1). Parts are named as in
torchvision, so that its weights fit where ``norm`` is batch.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lockstep.models._images import channels_of

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
MOST_GROUPS = 32  # Wu and He, "Group normalization", arXiv 1803.08494
Norm = Callable[[int], nn.Module]


def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: Literal[18, 34, 50] = 18,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    width: Annotated[int, Field(ge=1, le=4096)] = 64,
    norm: Literal["group", "batch"] = "group",
) -> nn.Module:
    """(batch, channels, height, width), or (batch, height, width), to (batch, num_classes) logits.

    The stem ``imagenet`` makes the image a quarter as wide before the first block; ``cifar`` keeps small ones as
    they are. ``norm: group`` is the same maths at any world size; ``batch`` uses each rank's own statistics.
    """
    channels = channels_of(input_shape, "resnet")
    make: Norm = nn.BatchNorm2d if norm == "batch" else group_norm
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(input_shape) == 2:
        layers["channel"] = nn.Unflatten(1, (1, input_shape[0]))
    if stem == "imagenet":
        layers["conv1"] = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    else:
        layers["conv1"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    layers |= {"bn1": make(width), "relu": nn.ReLU()}
    if stem == "imagenet":
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    block = Bottleneck if depth == 50 else BasicBlock
    inputs = width
    for stage, count in enumerate(DEPTHS[depth]):
        blocks = []
        for number in range(count):
            stride = 2 if stage and not number else 1
            blocks.append(block(inputs, width << stage, stride, make))
            inputs = (width << stage) * block.expansion
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers |= {
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(inputs, num_classes),
    }
    model = nn.Sequential(layers)
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model


def group_norm(channels: int) -> nn.Module:
    """32 groups, or fewer where there are few channels: one channel by itself would be its own statistics."""
    return nn.GroupNorm(1 if channels % 2 else math.gcd(MOST_GROUPS, channels // 2), channels)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.downsample = shortcut(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, width, height / stride, width / stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, of which the last is four times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, 4 * width, height / stride, width / stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module | None:
    """What brings a block's input to the shape of its output; None where it has that shape."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))
