"""Layers that the built-in networks are made of.

    B   rows of a batch
    C   channels, or features

Each of them survives vmap: no `if` on a tensor, no generator, no write into an unbatched tensor.

This module, and each that defines a network, travels with every model of such a network
(`bundle/network_source.py`), so it imports nothing of this project but its like.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.training.nets.randomness import keep_mask

InputShape = tuple[int, ...]
Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
ZERO_PRESERVING = frozenset(ACTIVATIONS) - {"sigmoid"}  # activation(0) == 0: padding is exact
SMALLEST_POOLED = 4  # pixels a side below which images are not halved further


class ShapeError(ValueError):
    """Rows of a shape that a network does not take."""


class Dropout(nn.Module):
    """Dropout whose mask is a pure function of (trial seed, optimizer step, layer, position).

    Rate, seed and step are buffers, not Python numbers, so that a fused step can give every lane
    its own. They are no part of the trained state, hence not persistent.
    """

    rate: Tensor
    seed: Tensor
    step: Tensor

    def __init__(self, rate: float, *, salt: int) -> None:
        super().__init__()
        self.salt = salt
        # 0-d, and of fixed dtypes: new values of them do not compile anything anew.
        self.register_buffer("rate", torch.tensor(rate, dtype=torch.float64), persistent=False)
        self.register_buffer("seed", torch.tensor(0), persistent=False)
        self.register_buffer("step", torch.tensor(0), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move to another device, but keep the rate in float64: a rounded rate moves the mask."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.rate = self.rate.to(torch.float64)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """[B, …] -> [B, …], survivors scaled by 1 / (1 - rate)."""
        if not self.training:
            return x
        keep = keep_mask(x.shape, rate=self.rate, seed=self.seed, step=self.step, salt=self.salt)
        # where, not a product: a diverged unit that is dropped must be 0, and inf·0 is NaN.
        return torch.where(keep, x * (1 / (1 - self.rate)).to(x.dtype), 0)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over all axes but 1, which does not fail on a batch of one value.

    The last batch of an epoch may hold a single row. It has no variance, so it is normalised by
    the running statistics and leaves them alone.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes from 2 is fine."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] -> [B, C, …]."""
        # Shapes alone decide, so that vmap and the tracer may take this branch.
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over axis 1 of [B, C] or [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, …] -> [B, C, …]."""
        # torch normalises trailing axes only: [B, C, H, W] -> [B, H, W, C] and back.
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in up to 8 groups of at least two channels, over [B, C, …]."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups_of(channels), channels)


def groups_of(channels: int) -> int:
    """Return 8, or the largest smaller power of two that leaves whole groups of two channels."""
    return next((n for n in (8, 4, 2) if channels % n == 0 and channels >= 2 * n), 1)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm,
    "group": GroupNorm,
    "layer": ChannelNorm,
}


def norm_of(network: Mapping[str, Any], channels: int) -> nn.Module:
    """Return the normalisation that the network's `norm` names."""
    kind = str(network["norm"])
    return nn.Identity() if kind == "none" else NORMS[kind](channels)


def dropout_of(network: Mapping[str, Any], salt: int) -> Dropout:
    """Return a dropout at the network's rate; `salt` differs between those of one network."""
    return Dropout(float(network["dropout"]), salt=salt)


def activation_of(network: Mapping[str, Any]) -> Activation:
    """Return the non-linearity that the network's `activation` names."""
    return ACTIVATIONS[network["activation"]]


def image_shape(inputs: InputShape, network: str) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        ShapeError: If rows are no images.
    """
    if len(inputs) != 3:
        raise ShapeError(
            f"a {network} needs rows of shape (channels, height, width), but got {inputs}"
        )
    return inputs[0], inputs[1], inputs[2]
