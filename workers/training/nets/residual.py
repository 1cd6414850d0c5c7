"""The residual network for images.

B   rows of a batch
C   channels, doubling from stage to stage
H   height
W   width, both halved by each stage but the first while the image is large
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from workers.training.nets.layers import (
    SMALLEST_POOLED,
    InputShape,
    activation_of,
    dropout_of,
    image_shape,
    norm_of,
)


class Block(nn.Module):
    """activation(x + norm(conv(activation(norm(conv(x)))))), x projected where its shape changes.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", the basic block.
    """

    def __init__(self, network: Mapping[str, Any], before: int, after: int, stride: int) -> None:
        super().__init__()
        # Only the first convolution strides: the shortcut then needs one projection at most.
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.norms = nn.ModuleList(norm_of(network, after) for _ in range(2))
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride)
        self.activation = activation_of(network)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        inner = self.activation(self.norms[0](self.first(x)))  # [B, C', H', W']
        return self.activation(self.shortcut(x) + self.norms[1](self.second(inner)))


class Resnet(nn.Module):
    """A convolution, stages of residual blocks, the mean over pixels, then Linear."""

    def __init__(self, network: Mapping[str, Any], inputs: InputShape, outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(inputs, "resnet")
        first = int(network["channels"])
        self.stem = nn.Conv2d(channels, first, 3, padding=1)
        self.norm = norm_of(network, first)
        self.blocks = nn.ModuleList()
        before = first
        for stage in range(int(network["stages"])):
            halves = stage > 0 and min(height, width) >= SMALLEST_POOLED
            if halves:
                height, width = -(-height // 2), -(-width // 2)  # as stride 2 with padding 1 does
            for block in range(int(network["blocks"])):
                stride = 2 if halves and block == 0 else 1
                self.blocks.append(Block(network, before, first << stage, stride))
                before = first << stage
        self.dropout = dropout_of(network, 0)
        self.output = nn.Linear(before, outputs)
        self.activation = activation_of(network)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs]."""
        x = self.activation(self.norm(self.stem(x)))  # [B, C, H, W]
        for block in self.blocks:
            x = block(x)
        # The mean over pixels, as in the paper: any image size goes with the same weights.
        return self.output(self.dropout(x.mean((-2, -1))))  # type: ignore[no-any-return]
