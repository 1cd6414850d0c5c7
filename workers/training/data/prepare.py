"""From raw arrays to tensors: checked, split, standardised, on the device if they fit there.

What is fitted (means and deviations) is fitted on the training part alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner_service.definition.trial_spec import DatasetSpec
from tuner_service.errors import DataError
from workers.training.data.arrays import ARRAYS
from workers.training.data.builtin import BUILTIN
from workers.training.data.cifar import CIFAR
from workers.training.data.encode import Encoder
from workers.training.data.idx import IDX
from workers.training.data.images import IMAGES
from workers.training.data.scaling import Chosen, Scaling, TargetScale, rows_at_once
from workers.training.data.sources import (
    Array,
    RawData,
    Request,
    Rows,
    Source,
    check_finite,
)
from workers.training.data.split import split_rows
from workers.training.data.split_by import SplitRows
from workers.training.data.tables import TABLES
from workers.training.nets.losses import TargetKind

EXACT_FLOAT32 = 2**24

SOURCES: dict[str, Source] = {**BUILTIN, **IDX, **CIFAR, **TABLES, **ARRAYS, **IMAGES}


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs [n, …] in the training dtype and targets, as the loss takes them.

    Targets are on the device; inputs too, unless the data is streamed: then they are on the CPU.

    Attributes:
        target_scale: What targets that are numbers were scaled by; None: they are the file's.
    """

    inputs: Tensor
    targets: Tensor
    target_scale: TargetScale | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.inputs)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class PreparedData:
    """One data set, ready to be trained on.

    Attributes:
        shape: Of one input.
        outputs: Numbers the network must give per row.
        validation: None where the split leaves no rows for it.
        test: As that.
        preprocessing: JSON that lets new inputs be prepared the same way.
        data_hash: SHA-256 over the arrays as read, before splitting.
        streamed: Inputs lie in files, and come to the device batch by batch.
        warnings: What is likely a mistake in the data, in sentences.
        weights: [n] Of the training part's rows in the training loss; None: they count alike.
        weighted: The training part's targets with the rows' weights, by the classes' weights.
    """

    train: Part
    validation: Part | None
    test: Part | None
    shape: tuple[int, ...]
    outputs: int
    targets: TargetKind
    classes: tuple[str, ...] | None
    preprocessing: dict[str, Any]
    data_hash: str
    streamed: bool = False
    warnings: tuple[str, ...] = ()
    weights: Tensor | None = None
    weighted: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held on the device, or in files."""
        parts = [part for part in (self.train, self.validation, self.test) if part]
        return sum(t.nbytes for part in parts for t in (part.inputs, part.targets))


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
            check_finite(rows.inputs, _called(rows, raw, request))
    _check_targets(raw, request)
    return raw


def _positive_last(raw: RawData, request: Request) -> RawData:
    """Return the data with the positive one of its two classes as the second.

    Raises:
        DataError: It is none of them, or there are not two.
    """
    positive, classes = request.options.get("positive"), raw.classes
    if positive is None:
        return raw
    if classes is None or len(classes) != 2 or positive not in classes:
        has = f"the classes {', '.join(map(repr, classes[:20]))}" if classes else "numbers"
        raise DataError(
            f"positive names one of two classes, as the file spells it, but it is {positive!r} and "
            f"{request.name} has {has}"
        )
    if classes.index(positive) == 1:
        return raw
    test = None if raw.test is None else replace(raw.test, targets=1 - raw.test.targets)
    rows = replace(raw.rows, targets=1 - raw.rows.targets)
    return replace(raw, rows=rows, test=test, classes=classes[::-1])


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


def prepare(spec: DatasetSpec, request: Request, *, dtype: torch.dtype) -> PreparedData:
    """Read, split and scale the data of `spec`, and put it where there is room.

    Raises:
        DataError: the data cannot be read or does not fit; the message says what to change.
    """
    read, room = read_raw(request), request.room
    # The same rows in every part, whichever class is the positive one.
    index, raw = _split(read, spec), _positive_last(read, request)
    parts = _parts(raw, index)
    train = parts["train"]
    # Encoding and scaling are fitted on the training part alone: what they knew of the others would
    # make the validation better than new data will be.
    encoder = Encoder.fit(train.rows.inputs[train.index], raw.table) if raw.table else None
    parts = {name: Chosen(one.rows, one.index, encoder) for name, one in parts.items()}
    train = parts["train"]
    standardize = bool(spec.options.get("standardize", True))
    names = spec.embedded and _is_whole(raw)
    if names:
        _check_exact(raw, dtype)
    scaling = Scaling.none(train) if names else Scaling.fit(train, standardize=standardize)
    if spec.options.get("scale") is not None:
        scaling = scaling.by_feature(train, _treatments(spec.options["scale"], raw, encoder))
    if encoder is not None:
        scaling = scaling.only(encoder.scaled)  # zeros and ones of categories stay what they are
    target_scale = _target_scale(train, spec, request)
    size = sum(map(len, parts.values())) * prod(train.shape) * dtype.itemsize
    streamed = not room.fits_device(size)

    def part(chosen: Chosen) -> Part:
        # [n, …]; the training part is read in a new order each epoch, the others from end to end.
        inputs = room.tensor(
            (len(chosen), *chosen.shape), dtype, streamed=streamed, scattered=chosen is train
        )
        called = _called(chosen.rows, raw, request)
        _fill(inputs, chosen, scaling, called)
        targets = _targets(chosen, request, called, scale=target_scale, dtype=dtype)
        return Part(inputs, targets.to(room.device), target_scale)

    return PreparedData(
        train=part(train),
        validation=part(parts["validation"]) if "validation" in parts else None,
        test=part(parts["test"]) if "test" in parts else None,
        shape=train.shape,
        outputs=_outputs(raw, request.targets),
        targets=request.targets,
        classes=raw.classes,
        preprocessing=_preprocessing(scaling, encoder, raw)
        | {"target": target_scale.described() if target_scale else None},
        data_hash=_hash(raw),
        streamed=streamed,
        weights=_weights(raw, train, room.device, dtype),
        warnings=raw.warnings + (() if names or not standardize else _doubts(raw)),
    )


def _weights(
    raw: RawData, train: Chosen, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Return the training part's weights [n], of which the mean is 1.

    Raises:
        DataError: All are 0.
    """
    if raw.weights is None:
        return None
    weights = raw.weights[train.index]
    if not weights.any():
        raise DataError("all rows of the training part have the weight 0")
    # So that a learning rate means the same whatever the unit of the weights.
    return torch.from_numpy(weights / weights.mean()).to(device=device, dtype=dtype)


def _treatments(
    scale: str | Mapping[str, str], raw: RawData, encoder: Encoder | None
) -> list[str | None]:
    """Return how each feature [F] is scaled; None: as the study's `standardize` says.

    Raises:
        DataError: A column is named that is no input, or becomes a feature for each category.
    """
    columns = raw.columns or ()
    widths = [column.width for column in encoder.columns] if encoder else [1] * len(columns)
    kinds = [column.described()["kind"] for column in encoder.columns] if encoder else []
    for name in scale if isinstance(scale, Mapping) else ():
        if name not in columns:
            raise DataError(f"{name!r} of `scale` is no input; those are {', '.join(columns[:20])}")
        if kinds and kinds[columns.index(name)] == "one_hot":
            raise DataError(f"{name!r} of `scale` holds categories, of which each is 0 or 1")
    how = [scale.get(name) if isinstance(scale, Mapping) else scale for name in columns]
    return [one for one, width in zip(how, widths, strict=True) for _ in range(width)]


def _is_whole(raw: RawData) -> bool:
    """Return whether inputs are whole numbers by their type: no images, no columns of a table."""
    inputs = raw.rows.inputs
    return inputs.dtype.kind in "iu" and inputs.ndim <= 3 and raw.columns is None


def _doubts(raw: RawData) -> tuple[str, ...]:
    """Return what is likely a mistake of inputs that are standardised."""
    if not _is_whole(raw):
        return ()
    low, high = int(raw.rows.inputs.min()), int(raw.rows.inputs.max())
    return (
        f"inputs are whole numbers from {low:,} to {high:,}, standardised as measurements are; if "
        "they are names, such as tokens, bring a network that embeds them (nn.Embedding), or set "
        "standardize to false",
    )


def _split(raw: RawData, spec: DatasetSpec) -> SplitRows:
    rows = raw.rows
    if spec.split.by is not None and raw.beside is None:
        raise DataError(f"{spec.name} has no columns to split by; leave split.{spec.split.by} out")
    classes = rows.targets if raw.classes is not None else None
    own_test = raw.test is not None
    return split_rows(
        len(rows.inputs),
        spec.split,
        classes=classes,
        own_test=own_test,
        labels=raw.classes or (),
        beside=raw.beside,
    )


def _parts(raw: RawData, index: SplitRows) -> dict[str, Chosen]:
    """Return the parts that have rows."""
    parts = {"train": Chosen(raw.rows, index.train)}
    if len(index.validation):
        parts["validation"] = Chosen(raw.rows, index.validation)
    if raw.test is not None:
        parts["test"] = Chosen(raw.test, np.arange(len(raw.test.inputs)))
    elif len(index.test):
        parts["test"] = Chosen(raw.rows, index.test)
    return parts


def _called(rows: Rows, raw: RawData, request: Request) -> str:
    """Return what messages call rows by whose number they name one: a test part counts its own."""
    return f"{request.name}, test part" if rows is raw.test else request.name


def _check_exact(raw: RawData, dtype: torch.dtype) -> None:
    """Refuse whole numbers that a float of this type does not tell apart."""
    most = int(np.abs(raw.rows.inputs.astype(np.float64)).max())
    if dtype != torch.float64 and most > EXACT_FLOAT32:
        raise DataError(
            f"inputs that are embedded go up to {most:,}, beyond the {EXACT_FLOAT32:,} up to which "
            "float32 tells them apart; number them anew, or set precision to float64"
        )


def _fill(inputs: Tensor, chosen: Chosen, scaling: Scaling, name: str) -> None:
    dtype = np.dtype(np.float64 if inputs.dtype == torch.float64 else np.float32)
    for start, chunk in chosen.chunks():
        with np.errstate(over="ignore"):  # told below, as a fault of the data
            scaled = scaling.apply(chunk, dtype)
        _check_fits(scaled, chosen.index[start:], f"{name}: the input")
        inputs[start : start + len(chunk)].copy_(torch.from_numpy(scaled))


def _target_scale(train: Chosen, spec: DatasetSpec, request: Request) -> TargetScale | None:
    """Return what targets are scaled by, fitted on the training part.

    Raises:
        DataError: Some have no logarithm.
    """
    how = spec.options.get("target_scale") or "none"
    if how == "none" or request.targets != "numbers":
        return None
    if how == "log":
        wrong = np.argwhere(~(train.rows.targets > 0))
        if len(wrong):
            row, value = int(wrong[0][0]), train.rows.targets[tuple(wrong[0])]
            raise DataError(
                f"{request.name}: the target of row {row + 1} is {value}; target_scale log needs "
                "numbers above 0"
            )
    return TargetScale.fit(train.targets.astype(np.float64), log=how == "log")


def _targets(
    chosen: Chosen,
    request: Request,
    called: str,
    *,
    scale: TargetScale | None,
    dtype: torch.dtype,
) -> Tensor:
    targets = np.ascontiguousarray(chosen.targets)
    if request.targets == "classes":  # [n] int64
        return torch.from_numpy(targets)
    if scale is not None:
        targets = scale.apply(targets)
    made = torch.from_numpy(targets if targets.ndim > 1 else targets[:, None]).to(dtype)  # [n, T]
    _check_fits(made.numpy(), chosen.index, f"{called}: the target")
    return made


def _check_fits(values: Array, index: Array, what: str) -> None:
    """Refuse finite numbers that are infinite in the type they are trained in."""
    finite = np.isfinite(values)
    if not finite.all():
        row = int(index[np.argwhere(~finite)[0][0]])
        raise DataError(
            f"{what} of row {row + 1} is too large for {values.dtype}; scale it in the file"
        )


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
        "csv": asdict(raw.layout) if raw.layout is not None else None,
        "missing": raw.missing,
        "images": raw.images,
    }


def _hash(raw: RawData) -> str:
    digest = hashlib.sha256()
    for rows in (raw.rows, *([raw.test] if raw.test else [])):
        for array in (rows.inputs, rows.targets):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            step = rows_at_once(array.shape[1:])
            for start in range(0, len(array), step):
                digest.update(np.ascontiguousarray(array[start : start + step]).data)
    if raw.table is not None:
        digest.update(repr(raw.table.labels).encode())
    if raw.beside is not None:
        digest.update(repr(raw.beside).encode())
    if raw.weights is not None:
        digest.update(np.ascontiguousarray(raw.weights).data)
    return digest.hexdigest()
