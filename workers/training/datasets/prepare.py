"""From raw arrays to tensors on the device: checked, split, standardised.

What is fitted (means and deviations) is fitted on the training part alone.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner_service.definition.spec import DatasetSpec
from tuner_service.errors import DataError
from workers.training.datasets.arrays import ARRAYS
from workers.training.datasets.builtin import BUILTIN
from workers.training.datasets.cifar import CIFAR
from workers.training.datasets.encode import Encoder
from workers.training.datasets.idx import IDX
from workers.training.datasets.images import IMAGES
from workers.training.datasets.sources import Array, RawData, Request, Rows, Source, check_finite
from workers.training.datasets.split import split_rows
from workers.training.datasets.tables import TABLES
from workers.training.losses import TargetKind

SOURCES: dict[str, Source] = {**BUILTIN, **IDX, **CIFAR, **TABLES, **ARRAYS, **IMAGES}

_AXES = {2: (0,), 3: (0, 1), 4: (0, 2, 3)}
"""What a mean is taken over: rows; and a sequence's steps; and an image's pixels."""

_CHUNK = 8192  # rows; keeps float64 temporaries of image data small


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs [n, …] in the training dtype and targets, as the loss takes them."""

    inputs: Tensor
    targets: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """One data set, ready on the device.

    Attributes:
        shape: Of one input.
        outputs: Numbers the network must give per row.
        test: None where the split asks for no test part.
        preprocessing: JSON that lets new inputs be prepared the same way.
        data_hash: SHA-256 over the arrays as read, before splitting.
    """

    train: Part
    validation: Part
    test: Part | None
    shape: tuple[int, ...]
    outputs: int
    targets: TargetKind
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any]
    data_hash: str

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        parts = [self.train, self.validation, *([self.test] if self.test else [])]
        return sum(t.nbytes for part in parts for t in (part.inputs, part.targets))


@dataclass(frozen=True, slots=True)
class Scaling:
    """x -> (x - mean) / deviation, broadcast over rows."""

    mean: Array
    deviation: Array

    def only(self, chosen: Array) -> "Scaling":
        """Return the scaling that leaves all features [F] but the chosen as they are."""
        return Scaling(np.where(chosen, self.mean, 0.0), np.where(chosen, self.deviation, 1.0))

    def apply(self, inputs: Array, dtype: np.dtype[Any]) -> Array:
        """Return scaled inputs, computed in float64 and rounded once."""
        out = np.empty(inputs.shape, dtype=dtype)
        for start in range(0, len(inputs), _CHUNK):
            chunk = inputs[start : start + _CHUNK].astype(np.float64)
            out[start : start + _CHUNK] = (chunk - self.mean) / self.deviation
        return out


def read_raw(request: Request) -> RawData:
    """Read the data and check what every kind of data must hold.

    Raises:
        DataError: it cannot be read, or does not fit the loss.
    """
    source = SOURCES.get(request.name)
    if source is None:
        raise DataError(f"no data set {request.name!r}; there are {', '.join(SOURCES)}")
    raw = source.read(request)
    if not len(raw.rows.inputs):
        raise DataError(f"{request.name}: the data has zero rows")
    for rows in (raw.rows, *([raw.test] if raw.test else [])):
        if raw.table is None:  # a table's gaps are no faults, and the rest was checked
            check_finite(rows.inputs, request.name)
    _check_targets(raw, request)
    return raw


def _check_targets(raw: RawData, request: Request) -> None:
    if request.targets == "numbers" and raw.classes is not None:
        raise DataError(
            f"{request.name} has classes as targets; use loss cross_entropy instead of one for "
            "numbers"
        )
    if request.targets != "numbers" and raw.classes is None:
        raise DataError(
            f"{request.name} has numbers as targets; use loss mse, mae or huber instead of one "
            "for classes"
        )
    if raw.classes is not None and len(raw.classes) < 2:
        raise DataError(f"{request.name} has {len(raw.classes)} class; it needs at least two")
    if request.targets == "binary" and raw.classes is not None and len(raw.classes) != 2:
        raise DataError(
            f"binary_cross_entropy takes two classes, but {request.name} has "
            f"{len(raw.classes)}; use cross_entropy"
        )


def prepare(
    spec: DatasetSpec, request: Request, *, dtype: torch.dtype, device: torch.device
) -> PreparedData:
    """Read, split and scale the data of `spec`, and put it on the device.

    Raises:
        DataError: the data cannot be read or does not fit; the message says what to change.
    """
    raw = read_raw(request)
    classes = raw.rows.targets if raw.classes is not None else None
    index = split_rows(
        len(raw.rows.inputs), spec.split, classes=classes, own_test=raw.test is not None
    )
    train = _pick(raw.rows, index.train)
    test = raw.test or (_pick(raw.rows, index.test) if len(index.test) else None)
    encoder = Encoder.fit(train.inputs, raw.table) if raw.table else None
    features = encoder.encode(train.inputs) if encoder else train.inputs
    scaling = _fit(features, standardize=bool(spec.options.get("standardize", True)))
    if encoder is not None:
        scaling = scaling.only(encoder.scaled)

    def part(rows: Rows) -> Part:
        if encoder is not None:
            rows = Rows(encoder.encode(rows.inputs), rows.targets)
        return _part(rows, scaling, request.targets, dtype=dtype, device=device)

    return PreparedData(
        train=part(train),
        validation=part(_pick(raw.rows, index.validation)),
        test=part(test) if test else None,
        shape=tuple(features.shape[1:]),
        outputs=_outputs(raw, request.targets),
        targets=request.targets,
        classes=raw.classes,
        preprocessing=_preprocessing(scaling, encoder, raw),
        data_hash=_hash(raw),
    )


def _pick(rows: Rows, index: Array) -> Rows:
    return Rows(rows.inputs[index], rows.targets[index])


def _fit(inputs: Array, *, standardize: bool) -> Scaling:
    axes = _AXES[inputs.ndim]
    shape = [1 if axis in axes else size for axis, size in enumerate(inputs.shape)][1:]
    if not standardize:
        # Pixels still come as fractions: raw bytes make any learning rate meant for them useless.
        top = 255.0 if inputs.dtype == np.uint8 else 1.0
        return Scaling(np.zeros(shape), np.full(shape, top))
    mean = inputs.mean(axis=axes, dtype=np.float64).reshape(shape)
    squares = np.zeros(shape)
    count = inputs.size // mean.size
    for start in range(0, len(inputs), _CHUNK):
        chunk = np.square(inputs[start : start + _CHUNK].astype(np.float64) - mean)
        squares += chunk.sum(axis=axes).reshape(shape)
    deviation = np.sqrt(squares / count)
    deviation[deviation == 0] = 1.0  # a constant column stays zero instead of NaN
    return Scaling(mean, deviation)


def _part(
    rows: Rows, scaling: Scaling, kind: TargetKind, *, dtype: torch.dtype, device: torch.device
) -> Part:
    numpy_dtype = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
    inputs = torch.from_numpy(scaling.apply(rows.inputs, numpy_dtype))
    targets = torch.from_numpy(np.ascontiguousarray(rows.targets))
    if kind == "binary":
        targets = targets[:, None]
    if kind != "classes":
        targets = targets.to(dtype)
    return Part(inputs.to(device=device, dtype=dtype), targets.to(device))


def _outputs(raw: RawData, kind: TargetKind) -> int:
    if kind == "binary":
        return 1
    return len(raw.classes) if raw.classes is not None else raw.rows.targets.shape[1]


def _preprocessing(scaling: Scaling, encoder: Encoder | None, raw: RawData) -> dict[str, Any]:
    return {
        "mean": scaling.mean.tolist(),
        "deviation": scaling.deviation.tolist(),
        "classes": list(raw.classes) if raw.classes is not None else None,
        "encoding": encoder.described() if encoder is not None else None,
        "columns": list(raw.columns) if raw.columns is not None else None,
    }


def _hash(raw: RawData) -> str:
    digest = hashlib.sha256()
    for rows in (raw.rows, *([raw.test] if raw.test else [])):
        for array in (rows.inputs, rows.targets):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    if raw.table is not None:
        digest.update(repr(raw.table.labels).encode())
    return digest.hexdigest()
