"""Targets as a file or a module has them: classes with their labels, or numbers; both checked."""

from decimal import Decimal
from numbers import Real

import numpy as np
import pandas as pd

from tuner_service.errors import DataError
from workers.training.data.sources import Array, RawData, Rows

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
    if targets.dtype.kind not in "fO":
        return targets
    numbers = _numbers_among(targets)
    row = first_without_class(numbers)
    if row is not None:
        raise DataError(
            f"{source}: the target of row {row + 1} is {targets[row]}, which is no class; use "
            "whole numbers, or a loss for numbers (mse, mae, huber)"
        )
    if targets.dtype == object and any(map(_is_name, targets)):
        return targets
    return numbers.astype(np.int64)


def _numbers_among(targets: Array) -> Array:
    """Return the numbers [n] of targets [n] as float64: a missing one is NaN, other values 0."""
    if targets.dtype != object:
        return targets
    names = np.fromiter(map(_is_name, targets), bool, len(targets))
    return np.where(pd.isna(targets), np.nan, np.where(names, 0.0, targets)).astype(np.float64)


def _is_name(value: object) -> bool:
    """Return whether a Python object names a class as it is; True and False do, like numpy's."""
    return not isinstance(value, (Real, Decimal)) or isinstance(value, bool)


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
    try:
        if targets.dtype.kind not in "biufO":  # text that looks like numbers is text all the same
            raise TypeError(targets.dtype)
        numbers = targets.astype(np.float64).reshape(len(targets), -1)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{source}: `targets` are text; for classes use loss cross_entropy, or task "
            "classification"
        ) from error
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        raise DataError(f"{source}: the target of row {wrong[0][0] + 1} is no finite number")
    return numbers
