"""The data sets that come with scikit-learn. Digits are images of 1×8×8, the others are tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets as sklearn_datasets

from workers.training.data.sources import RawData, Request, Rows, Source

_LOADERS: dict[str, Callable[[], Any]] = {
    "digits": sklearn_datasets.load_digits,
    "wine": sklearn_datasets.load_wine,
    "breast_cancer": sklearn_datasets.load_breast_cancer,
    "iris": sklearn_datasets.load_iris,
    "diabetes": sklearn_datasets.load_diabetes,
}


def _read(request: Request) -> RawData:
    bunch = _LOADERS[request.name]()
    if request.name == "diabetes":
        rows = Rows(bunch.data, bunch.target.astype(np.float64)[:, None])
        return RawData(rows, None, classes=None, columns=_names(bunch))
    classes = tuple(str(label) for label in bunch.target_names)
    images = request.name == "digits"
    inputs = bunch.data.reshape(-1, 1, 8, 8) if images else bunch.data
    rows = Rows(inputs, bunch.target.astype(np.int64))
    columns = None if images else _names(bunch)
    return RawData(rows, None, classes=classes, columns=columns)


def _names(bunch: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in bunch.feature_names)


def _no_files(request: Request) -> tuple[Path, ...]:
    del request
    return ()


BUILTIN: dict[str, Source] = {name: Source(_no_files, _read) for name in _LOADERS}
