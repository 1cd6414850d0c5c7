"""Data that a module of the operator's loads: arrays or tensors, inputs and targets."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner_service.errors import DataError
from workers.training.data.labels import labelled, labels_of, numbers_of
from workers.training.data.sources import Array, RawData, Request, Rows, Source


def source_of(load: Callable[..., Any], name: str) -> Source:
    """Return the source that calls `load_data` with the definition's options."""
    return Source(files=_no_files, read=lambda request: _read(load, name, request))


def _no_files(request: Request) -> tuple[Path, ...]:
    del request
    return ()


def _read(load: Callable[..., Any], name: str, request: Request) -> RawData:
    ours = ("task", "positive", "standardize", "target_scale")
    given = {key: value for key, value in request.options.items() if key not in ours}
    with _seeded():
        loaded = load(**given)
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        raise TypeError(f"{name}: load_data must return a pair, inputs and targets")
    inputs, targets = (_array(one) for one in loaded)
    if inputs.ndim not in (2, 3, 4) or inputs.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: load_data must return inputs as numbers [rows, features], [rows, steps, "
            "features] or [rows, channels, height, width], but got the shape "
            f"{inputs.shape} of {inputs.dtype}"
        )
    if len(inputs) != len(targets):
        raise DataError(
            f"{name}: load_data must return as many targets as inputs, but got {len(targets)} "
            f"and {len(inputs)}"
        )
    if request.targets == "numbers":
        return RawData(Rows(inputs, numbers_of(targets, name)), None, classes=None)
    return labelled(inputs, labels_of(targets, name))


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw the same inside, whichever worker loads the data; outside nothing changes."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  what a user's code may draw from
            random.seed(0)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
