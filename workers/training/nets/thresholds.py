"""The probability from which on the positive one of two classes is predicted.

R   rows
T   distinct probabilities among them
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Counts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From hits, false alarms, misses and true negatives, each [T] float64, to a score [T]."""


def best_threshold(outputs: Tensor, targets: Tensor, metric: str) -> float:
    """Return the threshold with the best score on these rows; of equals that nearest to 1/2.

    It lies midway between two neighbours among the probabilities, since new rows fall in between.

    Args:
        outputs: [R, 2] logits, or [R, 1] of one logit.
        targets: [R] classes, or [R, 1] zeros and ones.
        metric: One of `THRESHOLD_SCORES`.
    """
    positive = targets.flatten() == 1  # [R]
    values = probabilities(outputs)  # [R]
    distinct = torch.unique(values)  # [T], ascending
    below = torch.cat([distinct.new_zeros(1), distinct[:-1]])
    cuts = (below + distinct) / 2
    cuts = cuts.where(cuts > below, distinct)  # neighbours in float64 have no middle
    # All rows from a cut on are taken for positive.
    hits = _from(distinct, values[positive])
    alarms = _from(distinct, values[~positive])
    misses, silent = hits[0] - hits, alarms[0] - alarms
    scores = THRESHOLD_SCORES[metric](hits, alarms, misses, silent)
    best = cuts[scores == scores.max()]
    return float(best[(best - 0.5).abs().argmin()])


def probabilities(outputs: Tensor) -> Tensor:
    """Return the positive class's [R] float64, of logits [R, 2] or [R, 1]."""
    if outputs.shape[-1] == 1:
        return outputs[:, 0].double().sigmoid()
    return outputs.double().softmax(dim=-1)[:, 1]


def _from(cuts: Tensor, values: Tensor) -> Tensor:
    """Return how many values are not below each cut, [T] float64."""
    return (len(values) - torch.searchsorted(values.sort().values, cuts)).double()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp(min=1)


def _f1(hits: Tensor, alarms: Tensor, misses: Tensor, silent: Tensor) -> Tensor:
    del silent
    return _ratio(2 * hits, 2 * hits + alarms + misses)


def _balanced(hits: Tensor, alarms: Tensor, misses: Tensor, silent: Tensor) -> Tensor:
    return (_ratio(hits, hits + misses) + _ratio(silent, silent + alarms)) / 2


def _accuracy(hits: Tensor, alarms: Tensor, misses: Tensor, silent: Tensor) -> Tensor:
    return _ratio(hits + silent, hits + alarms + misses + silent)


THRESHOLD_SCORES: Mapping[str, Counts] = {
    "f1": _f1,
    "balanced_accuracy": _balanced,
    "accuracy": _accuracy,
}
