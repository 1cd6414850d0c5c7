"""A residual network as one writes it, on images made up: time does not depend on their pixels."""

import numpy as np
import torch
from torch import nn


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if channels == after and stride == 1
            else nn.Sequential(
                nn.Conv2d(channels, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, after, H / stride, W / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


def build(inputs, outputs, channels: int = 16, stages: int = 3) -> nn.Module:
    """Build the network.

    Args:
        channels: Of the first stage; each further one has twice as many.
        stages: With one block each.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs[0], channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
    for stage in range(stages):
        before = channels << max(0, stage - 1)
        layers.append(Block(before, channels << stage, 1 if stage == 0 else 2))
    last = channels << (stages - 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, outputs))


def load_data(rows: int = 6000, side: int = 28, classes: int = 10):
    """Return images [rows, 1, side, side], each its class's pattern under noise, and the classes.

    Args:
        rows: Images.
        side: Pixels of a side.
        classes: Kinds of images.
    """
    generator = np.random.default_rng(0)
    patterns = generator.random((classes, 1, side, side), dtype=np.float32)
    targets = np.arange(rows) % classes
    noise = generator.random((rows, 1, side, side), dtype=np.float32)
    return 0.5 * (patterns[targets] + noise), targets
