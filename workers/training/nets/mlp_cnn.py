"""The multilayer perceptron and the convolutional network.

B   rows of a batch
C   channels, doubling from layer to layer
H   height
W   width, both halved by pooling while the image is large
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from workers.training.nets.layers import (
    SMALLEST_POOLED,
    InputShape,
    activation_of,
    dropout_of,
    image_shape,
    norm_of,
)


class Mlp(nn.Module):
    """Hidden layers of one width, each Linear → norm → activation → dropout, then Linear."""

    def __init__(self, network: Mapping[str, Any], inputs: InputShape, outputs: int) -> None:
        super().__init__()
        width = int(network["hidden_units"])
        sizes = [math.prod(inputs)] + [width] * int(network["hidden_layers"])
        pairs = list(itertools.pairwise(sizes))
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)
        self.norms = nn.ModuleList(norm_of(network, after) for _, after in pairs)
        self.dropouts = nn.ModuleList(dropout_of(network, salt) for salt in range(len(pairs)))
        self.output = nn.Linear(sizes[-1], outputs)
        self.activation = activation_of(network)

    def forward(self, x: Tensor) -> Tensor:
        """[B, …inputs] -> [B, outputs]."""
        x = x.flatten(1)  # [B, features]
        for linear, norm, dropout in zip(self.hidden, self.norms, self.dropouts, strict=True):
            x = dropout(self.activation(norm(linear(x))))  # [B, hidden_units]
        return self.output(x)  # type: ignore[no-any-return]


class Cnn(nn.Module):
    """Convolutions, each followed by norm, activation and, while the image is large, halving.

    Channels double with every layer. A hidden Linear with dropout stands before the output.
    """

    def __init__(self, network: Mapping[str, Any], inputs: InputShape, outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(inputs, "cnn")
        first, kernel = int(network["channels"]), int(network["kernel_size"])
        sizes = [channels] + [first << i for i in range(int(network["conv_layers"]))]
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.pooled: list[bool] = []
        for before, after in itertools.pairwise(sizes):
            self.convolutions.append(nn.Conv2d(before, after, kernel, padding=kernel // 2))
            self.norms.append(norm_of(network, after))
            # Padding by half an even kernel adds a line to each side.
            height, width = (side + 1 - kernel % 2 for side in (height, width))
            self.pooled.append(min(height, width) >= SMALLEST_POOLED)
            if self.pooled[-1]:
                height, width = height // 2, width // 2
        self.hidden = nn.Linear(sizes[-1] * height * width, int(network["hidden_units"]))
        self.dropout = dropout_of(network, 0)
        self.output = nn.Linear(self.hidden.out_features, outputs)
        self.activation = activation_of(network)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs]."""
        layers = zip(self.convolutions, self.norms, self.pooled, strict=True)
        for convolution, norm, pooled in layers:
            x = self.activation(norm(convolution(x)))  # [B, C', H, W]
            x = F.max_pool2d(x, 2) if pooled else x
        x = self.dropout(self.activation(self.hidden(x.flatten(1))))  # [B, hidden_units]
        return self.output(x)  # type: ignore[no-any-return]
