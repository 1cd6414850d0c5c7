"""A network and data of one's own (docs/bring-a-network.md): rings around one another."""

import numpy as np
import torch
from torch import nn


class Polar(nn.Module):
    """Adds each point's distance from the middle to its coordinates."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """[rows, 2] -> [rows, 3]."""
        return torch.cat([points, points.norm(dim=1, keepdim=True)], dim=1)


def build(inputs, outputs, width: int = 16) -> nn.Module:
    """Build the network.

    Args:
        width: Units of the hidden layer.
    """
    (features,) = inputs
    return nn.Sequential(
        Polar(),
        nn.Linear(features + 1, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def load_data(rows: int = 600, rings: int = 3, noise: float = 0.1):
    """Return points [rows, 2] and the number of each one's ring.

    Args:
        rows: Points.
        rings: Rings.
        noise: Standard deviation of a point's distance from its ring.
    """
    generator = np.random.default_rng(0)
    ring = np.arange(rows) % rings
    radius = 1.0 + ring + generator.normal(0.0, noise, rows)
    angle = generator.uniform(0.0, 2 * np.pi, rows)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]), ring


def rings_off(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return by how many rings the guesses are wrong, on average."""
    return (output.argmax(1) - target).abs().double().mean()


metrics = {"rings_off": rings_off}
