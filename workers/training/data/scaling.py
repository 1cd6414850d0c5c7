"""Rows chosen from the data as read, taken in chunks, and their standardisation.

    n  rows chosen,  C  columns as read,  F  shape of one row as the network takes it

Nothing here holds more than a chunk: the data may be larger than memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner_service.errors import DataError
from workers.training.data.encode import Encoder
from workers.training.data.sources import Array, Rows

CHUNK_BYTES = 32 << 20  # of a chunk's float64 temporaries

_AXES = {2: (0,), 3: (0, 1), 4: (0, 2, 3)}
"""What a mean is taken over: rows; and a sequence's steps; and an image's pixels."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows [n, F] of the data, encoded when they are taken.

    Attributes:
        index: [n] Their numbers.
        encoder: Of a table with text or gaps.
    """

    rows: Rows
    index: Array
    encoder: Encoder | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """F."""
        return (self.encoder.width,) if self.encoder else self.rows.inputs.shape[1:]

    @property
    def targets(self) -> Array:
        """[n, …]."""
        return self.rows.targets[self.index]

    def chunks(self) -> Iterator[tuple[int, Array]]:
        """Yield chunks of inputs [at most n, F], and where they begin."""
        step = rows_at_once(self.shape)
        for start in range(0, len(self), step):
            inputs = self.rows.inputs[self.index[start : start + step]]
            yield start, self.encoder.encode(inputs) if self.encoder else inputs


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Return how many rows of this shape make a chunk."""
    return max(1, CHUNK_BYTES // (8 * max(1, prod(shape))))


@dataclass(frozen=True, slots=True)
class Scaling:
    """x -> (x - mean) / deviation, broadcast over rows."""

    mean: Array
    deviation: Array

    @classmethod
    def fit(cls, part: Chosen, *, standardize: bool) -> "Scaling":
        """Return what brings the part's columns, features or channels to mean 0, deviation 1.

        Raises:
            DataError: Numbers are so large that their squares are infinite.
        """
        axes = _AXES[len(part.shape) + 1]
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(part.shape, start=1))
        if not standardize:
            # Pixels still come as fractions: raw bytes make any learning rate meant for them
            # useless.
            top = 255.0 if part.rows.inputs.dtype == np.uint8 else 1.0
            return cls(np.zeros(shape), np.full(shape, top))
        count = len(part) * prod(part.shape) // prod(shape)
        total, squares = np.zeros(shape), np.zeros(shape)
        # The mean as a distance from one of the numbers: of a constant column it is exact, where
        # a sum of many is rounded and would leave a deviation of about 1e-17.
        pivot = _one_each(part, axes)
        with np.errstate(over="ignore", invalid="ignore"):  # told below, as a fault of the data
            for _, chunk in part.chunks():
                total += (chunk.astype(np.float64) - pivot).sum(axis=axes).reshape(shape)
            mean = pivot + total / count
            for _, chunk in part.chunks():
                distance = np.square(chunk.astype(np.float64) - mean)
                squares += distance.sum(axis=axes).reshape(shape)
        if not np.isfinite(squares).all():
            column = int(np.argwhere(~np.isfinite(squares.reshape(-1)))[0][0])
            raise DataError(
                f"column or channel {column + 1} of the inputs has numbers too large to "
                "standardise; scale it in the file"
            )
        deviation = np.sqrt(squares / count)
        deviation[deviation == 0] = 1.0  # a constant column stays zero instead of NaN
        return cls(mean, deviation)

    @classmethod
    def none(cls, part: Chosen) -> "Scaling":
        """Return what leaves whole numbers that are names, such as tokens, as they are."""
        shape = (1,) * len(part.shape)
        return cls(np.zeros(shape), np.ones(shape))

    def only(self, chosen: Array) -> "Scaling":
        """Return the scaling that leaves all features [F] but the chosen as they are."""
        return Scaling(np.where(chosen, self.mean, 0.0), np.where(chosen, self.deviation, 1.0))

    def by_feature(self, part: Chosen, how: Sequence[str | None]) -> "Scaling":
        """Return the scaling with other treatments of some features [F] of a table.

        Args:
            how: [F] minmax, robust, standard or none; None: as it is here.
        """
        mean, deviation = self.mean.copy(), self.deviation.copy()
        chosen = [at for at, one in enumerate(how) if one is not None]
        if not chosen:
            return self
        values = np.concatenate(
            [chunk[:, chosen].astype(np.float64) for _, chunk in part.chunks()]
        )  # [n, chosen]
        for place, at in enumerate(chosen):
            mean.flat[at], deviation.flat[at] = TREATMENTS[str(how[at])](values[:, place])
        return Scaling(mean, deviation)

    def apply(self, inputs: Array, dtype: "np.dtype[Any]") -> Array:
        """Return scaled inputs, computed in float64 and rounded once."""
        scaled: Array = ((inputs.astype(np.float64) - self.mean) / self.deviation).astype(dtype)
        return scaled


def _one_each(part: Chosen, axes: tuple[int, ...]) -> Array:
    """Return the first number of each column, feature or channel, in a mean's shape."""
    _, first = next(Chosen(part.rows, part.index[:1], part.encoder).chunks())
    kept = tuple(slice(1) if axis in axes else slice(None) for axis in range(1, first.ndim))
    return np.asarray(first[0][kept], np.float64)


def _standard(values: Array) -> tuple[float, float]:
    # As a distance from one of them, as above.
    mean = values[0] + (values - values[0]).mean()
    return mean, _spread(np.sqrt(np.square(values - mean).mean()))


def _minmax(values: Array) -> tuple[float, float]:
    return values.min(), _spread(values.max() - values.min())


def _robust(values: Array) -> tuple[float, float]:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return middle, _spread(high - low)


def _spread(spread: float) -> float:
    return spread or 1.0  # a constant column stays zero instead of NaN


TREATMENTS: Mapping[str, Callable[[Array], tuple[float, float]]] = {
    "standard": _standard,
    "minmax": _minmax,
    "robust": _robust,
    "none": lambda values: (0.0, 1.0),
}
"""From a column of the training part to what is subtracted and what divides; as scikit-learn's."""


@dataclass(frozen=True, slots=True)
class TargetScale:
    """y -> (y - mean) / deviation of y or, with `log`, of log y, by target column [T].

    Networks train on what it makes; metrics and predictions are in the file's units.
    """

    mean: Array
    deviation: Array
    log: bool

    @classmethod
    def fit(cls, targets: Array, *, log: bool) -> "TargetScale":
        """Return what brings the training part's targets [n, T] to mean 0, deviation 1."""
        values = np.log(targets) if log else targets
        first = values[:1]  # the mean as a distance from it, as above
        mean = (first + (values - first).mean(axis=0, keepdims=True))[0]
        deviation = values.std(axis=0)
        deviation[(deviation == 0) | (values == first).all(axis=0)] = 1.0
        return cls(mean, deviation, log)

    def apply(self, targets: Array) -> Array:
        """[n, T] in the file's units -> scaled."""
        scaled: Array = ((np.log(targets) if self.log else targets) - self.mean) / self.deviation
        return scaled

    def restored(self, values: Tensor) -> Tensor:
        """[…, T] scaled -> float64 in the file's units."""
        mean, deviation = (
            torch.as_tensor(one, dtype=torch.float64, device=values.device)
            for one in (self.mean, self.deviation)
        )
        plain = values.double() * deviation + mean
        return plain.exp() if self.log else plain

    def described(self) -> dict[str, Any]:
        """Return the scale as JSON, for predictions to be in the file's units."""
        return {
            "mean": self.mean.tolist(),
            "deviation": self.deviation.tolist(),
            "log": self.log,
        }
