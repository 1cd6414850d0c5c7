"""Losses per row, pure tensor operations, so that either step can average them.

    B   rows of a batch
    C   classes
    T   target columns (1 for the binary loss)

A loss maps (outputs, targets, smoothing) to [B]. `smoothing` is a float or a 0-d tensor, so that
it can differ per lane. The training loss of a batch is the mean over its rows; penalties on the
weights (L1, weight decay) are no part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTED = "weighted:"
"""Before a loss's name: targets bring each row's weight, in a column of their own."""

RowLoss = Callable[[Tensor, Tensor, Tensor | float], Tensor]
TargetKind = Literal["classes", "binary", "numbers"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss by row, and the targets it takes.

    Attributes:
        rows: (outputs, targets, smoothing) -> [B].
        targets: `classes`: [B] int64, outputs [B, C]; `binary`: [B, 1] zeros and ones, outputs
            [B, 1] logits; `numbers`: [B, T], outputs [B, T].
    """

    rows: RowLoss
    targets: TargetKind


def cross_entropy(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return -Σ q log p per row, with q = (1 - s)·onehot + s/C.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", equation 7.1.
    """
    log_p = F.log_softmax(outputs, dim=-1)  # [B, C]
    hit = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # [B]
    # Σ q log p in two parts, so that no [B, C] of targets is made.
    return -(1.0 - smoothing) * hit - smoothing * log_p.mean(dim=-1)


def binary_cross_entropy(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return the two-class cross-entropy of one logit per row; s pulls targets towards 1/2."""
    soft = targets * (1.0 - smoothing) + 0.5 * smoothing  # [B, 1]
    # From logits: log(sigmoid(z)) of its own is -inf from z = -104 on in float32.
    return F.binary_cross_entropy_with_logits(outputs, soft, reduction="none").mean(dim=-1)


def focal(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return -(1 - p)² log p per row, p the true class's probability.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 4, with γ = 2.
    """
    del smoothing
    log_p = F.log_softmax(outputs, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # [B]
    return -(-torch.expm1(log_p)).square() * log_p


def mse(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return the squared error, averaged over target columns."""
    del smoothing
    return (outputs - targets).square().mean(dim=-1)


def mae(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return the absolute error, averaged over target columns."""
    del smoothing
    return (outputs - targets).abs().mean(dim=-1)


def huber(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
    """Return e²/2 where |e| <= 1, else |e| - 1/2, averaged over target columns.

    Source: Huber 1964, with the threshold 1 that torch takes by default.
    """
    del smoothing
    size = (outputs - targets).abs()  # [B, T]
    return torch.where(size <= 1.0, 0.5 * size.square(), size - 0.5).mean(dim=-1)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, "classes"),
    "binary_cross_entropy": Loss(binary_cross_entropy, "binary"),
    "focal": Loss(focal, "classes"),
    "mse": Loss(mse, "numbers"),
    "mae": Loss(mae, "numbers"),
    "huber": Loss(huber, "numbers"),
}


def row_losses(name: str) -> RowLoss:
    """Return the loss by row of this name."""
    plain = name.removeprefix(WEIGHTED)
    return LOSSES[name].rows if plain == name else _weighted(LOSSES[plain])


def with_weights(targets: Tensor, weights: Tensor) -> Tensor:
    """Return targets [n, T + 1] of a `WEIGHTED` loss: the last column is the row's weight [n]."""
    columns = targets if targets.dim() > 1 else targets.unsqueeze(-1)
    return torch.cat([columns.to(weights.dtype), weights.unsqueeze(-1)], dim=-1)


def _weighted(loss: Loss) -> RowLoss:
    """Return weight · loss by row, of targets that bring their weights."""

    def rows(outputs: Tensor, targets: Tensor, smoothing: Tensor | float) -> Tensor:
        # A class's number is exact as a float: there are fewer than 2**24 of them.
        own = targets[..., 0].long() if loss.targets == "classes" else targets[..., :-1]
        return targets[..., -1] * loss.rows(outputs, own, smoothing)  # [B]

    return rows
