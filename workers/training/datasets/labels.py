"""Targets as a file or a module has them: classes with their labels, or numbers; both checked."""

import numpy as np

from tuner_service.errors import DataError
from workers.training.datasets.sources import Array, RawData, Rows

_LARGEST = 2.0**53  # beyond, a float64 does not tell whole numbers apart


def labelled(inputs: Array, labels: Array) -> RawData:
    """Return the data with class numbers for labels, in the labels' order."""
    if labels.dtype == object:
        labels = labels.astype(str)
    known, numbers = np.unique(labels, return_inverse=True)
    classes = tuple(str(label) for label in known)
    return RawData(Rows(inputs, numbers.astype(np.int64)), None, classes=classes)


def labels_of(targets: Array, source: str) -> Array:
    """Return the labels [n] that an array of targets holds: text, or whole numbers.

    Args:
        targets: [n] or [n, 1].
        source: What messages name.

    Raises:
        DataError: They are no classes.
    """
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim != 1:
        raise DataError(
            f"{source}: `targets` of classes must be of the shape [rows], but are "
            f"{list(targets.shape)}; give the class's number, not a column per class"
        )
    if targets.dtype.kind == "S":
        return np.char.decode(targets, "utf-8", "replace")
    if targets.dtype.kind != "f":
        return targets
    row = first_without_class(targets)
    if row is not None:
        raise DataError(
            f"{source}: the target of row {row + 1} is {targets[row]}, which is no class; use "
            "whole numbers, or a loss for numbers (mse, mae, huber)"
        )
    return targets.astype(np.int64)


def first_without_class(values: Array) -> int | None:
    """Return the first row whose float is no whole number that float64 holds exactly, if any."""
    # Written so that NaN, which is in no relation, is found too.
    broken = np.flatnonzero(~((values == np.round(values)) & (np.abs(values) <= _LARGEST)))
    return int(broken[0]) if len(broken) else None


def numbers_of(targets: Array, source: str) -> Array:
    """Return the numbers [n, T] that an array of targets [n, …] holds, as float64.

    Raises:
        DataError: They are text, or not all finite.
    """
    if targets.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: `targets` are text; for classes use loss cross_entropy, or task "
            "classification"
        )
    numbers = targets.astype(np.float64).reshape(len(targets), -1)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        raise DataError(f"{source}: the target of row {wrong[0][0] + 1} is no finite number")
    return numbers
