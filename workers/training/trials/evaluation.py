"""Losses and metrics of K lanes on the R rows of one part of the data, in one go."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.training.data import Part
from workers.training.nets.losses import LOSSES, row_losses
from workers.training.nets.metrics import MetricSet, Scores

MOST_CONFUSED = 50  # classes: the counts of more would bloat every trial's record


def measure(
    outputs: Tensor,
    part: Part,
    *,
    loss: str,
    metrics: Sequence[MetricSet | None],
    thresholds: Sequence[float | None] = (),
) -> list[dict[str, float]]:
    """Return `loss` and each lane's own metrics, without prefix.

    The loss has neither label smoothing nor weights: trials that differ in them stay comparable.

    Args:
        outputs: [K, R, …].
        metrics: [K]; None for an idle lane, whose numbers are left out.
        thresholds: [K] As `Scores` has them; empty: none.
    """
    kind = LOSSES[loss].targets
    targets = part.targets.expand(outputs.shape[0], *part.targets.shape)
    losses = row_losses(loss)(outputs, targets, 0.0).double().mean(-1).tolist()  # [K]
    # Lanes may ask for different metrics: each is computed once for all lanes, then picked.
    union = tuple({name: None for one in metrics if one for name in one.names})
    # In the file's units: what was scaled for training is none of a metric's concern.
    scale = part.target_scale
    measured = outputs if scale is None else scale.restored(outputs)
    true = part.targets if scale is None else scale.restored(part.targets)
    scores = Scores(measured, true, binary=kind == "binary", thresholds=thresholds)
    table = MetricSet(union, numbers=kind == "numbers").compute(scores)
    return [
        {
            "loss": losses[lane],
            **{name: table[name][lane] for name in one.names},
            **one.compute_user(measured[lane], true),
        }
        if one
        else {}
        for lane, one in enumerate(metrics)
    ]


def is_confused(outputs: int, loss: str) -> bool:
    """Whether targets are classes, and few enough to count them by pairs."""
    return LOSSES[loss].targets != "numbers" and outputs <= MOST_CONFUSED


def confusion(
    outputs: Tensor, part: Part, *, loss: str, thresholds: Sequence[float | None] = ()
) -> list[list[list[int]]] | None:
    """Return each lane's rows by true class, then by predicted class.

    None for numbers, and for more than `MOST_CONFUSED` classes.

    Args:
        outputs: [K, R, …].
        thresholds: [K] As `Scores` has them; empty: none.
    """
    if not is_confused(outputs.shape[-1], loss):
        return None
    binary = LOSSES[loss].targets == "binary"
    scores = Scores(outputs, part.targets, binary=binary, thresholds=thresholds)
    counts: list[list[list[int]]] = scores.confusion().tolist()
    return counts


def select_lanes(outputs: Tensor, lanes: Sequence[int]) -> Tensor:
    """Return the outputs [len(lanes), R, …] of some lanes."""
    return outputs[torch.tensor(lanes, device=outputs.device)]
