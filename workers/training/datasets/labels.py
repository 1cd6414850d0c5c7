"""Classes of text or numbers, as class numbers with their labels."""

import numpy as np

from workers.training.datasets.sources import Array, RawData, Rows


def labelled(inputs: Array, labels: Array) -> RawData:
    """Return the data with class numbers for labels, in the labels' order."""
    if labels.dtype == object:
        labels = labels.astype(str)
    known, numbers = np.unique(labels, return_inverse=True)
    classes = tuple(str(label) for label in known)
    return RawData(Rows(inputs, numbers.astype(np.int64)), None, classes=classes)
