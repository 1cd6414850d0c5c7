"""What the epoch loop asks of a step: train K lanes of one group for one epoch, and evaluate them.

Notation, here and in `plain.py` and `fused.py`:

    K   lanes of the group (1 in the plain step)
    S   optimizer steps in an epoch, ceil(n / B)
    B   batch size
    n   rows of the training part

All lanes of a group share data, batch size, loss, dtype and network shape, so they take the same S
steps per epoch and stay aligned, each at its own epoch. A lane's canonical state is a flat dict of
CPU-or-device tensors, the same from either step, so that a checkpoint of one continues in the
other: `parameters/NAME`, `buffers/NAME`, `optimizer/SLOT/NAME` with SLOT in `momentum`,
`square`, `first`, `second`, `sum`, `delta`, and `optimizer/steps` (int64 scalar, optimizer steps
taken).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# Flat, by name and on no particular step's layout: what a checkpoint holds, and what lanes of every
# backend are loaded from.
LaneState = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class LaneHyper:
    """A lane's hyperparameters that may differ within a group (all fusible).

    Attributes:
        optimizer: A kind of `optim/registry.py`; momentum-SGD is sgd with momentum > 0.
        options: Every other parameter of the optimizer but the learning rate: momentum, betas
            (beta1, beta2), alpha, eps, weight_decay, …
        dropout: Rate for every dropout of the network.
        seed: Of initial weights, data order and masks.
        random_flip: Probability of a flip of each training image.
        random_crop: Pixels by which training images are padded before they are cropped.
        network: The lane's own network, whose widths may be smaller than the group's; None: the
            group's.
    """

    optimizer: str
    options: Mapping[str, float]
    dropout: float
    label_smoothing: float
    l1: float
    gradient_clip: float | None
    seed: int
    network: Mapping[str, Any] | None = None
    random_flip: float = 0.0
    random_crop: int = 0

    @property
    def augments(self) -> bool:
        """Whether training images are changed."""
        return self.random_flip > 0 or self.random_crop > 0


class TrainStep(Protocol):
    """K lanes of one group on one device. Not thread-safe."""

    lanes: int

    @property
    def backend(self) -> str:
        """What runs the lanes: plain, traced, compiled, …; may change between calls."""

    @property
    def backend_reason(self) -> str | None:
        """Why nothing faster does; None where there is nothing faster."""

    def put(self, lane: int, hyper: LaneHyper, state: LaneState | None) -> None:
        """Load a trial into a lane: from a canonical state, or freshly from its seed."""

    def take(self, lane: int) -> LaneState:
        """Return a copy of the lane's canonical state, on the CPU.

        Raises:
            LookupError: The lane is idle.
        """

    def clear(self, lane: int) -> None:
        """Make the lane idle; its tensors may keep their last values."""

    def train_epoch(self, orders: Tensor, learning_rates: Tensor) -> Tensor:
        """Train every occupied lane for one epoch, or for a slice of one.

        A long epoch comes in several calls with consecutive slices, so that a stop is heard in
        time; every slice but the last holds whole batches.

        Args:
            orders: [K, n] int64, each lane's row order (idle lanes: anything valid).
            learning_rates: [K, S] float64, the rate of every step.

        Returns:
            [K] float64 sum over the call's rows of the training loss, that is of each batch's mean
            times its rows (idle lanes: 0), NaN or infinite where it diverged. A sum, because
            slices then add up exactly, however many there are.
        """

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Return [K, rows, …] network outputs in evaluation mode, without gradients."""

    def remember(self, lanes: Sequence[int]) -> None:
        """Keep a copy of the present weights of these lanes aside, on the device."""

    def recall(self, lane: int) -> LaneState:
        """Return what was remembered of a lane: `parameters/…` and `buffers/…`, on the CPU."""


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return S; the last batch may be short and is kept."""
    # Dropping the short batch would leave up to B - 1 rows of a small data set out of every epoch.
    return -(-rows // batch_size)


def device_of(name: str) -> torch.device:
    """Return the torch device for `cpu` or `cuda`."""
    return torch.device(name)
