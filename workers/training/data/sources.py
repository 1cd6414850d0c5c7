"""What a source of data hands over, before splitting: arrays and what they mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuner_service.errors import DataError
from workers.training.data.room import Room
from workers.training.nets.losses import TargetKind

Array = NDArray[Any]

MAX_BYTES = 1 << 40
"""Bound on one data set's arrays; more is a file that lies about itself."""

_CHECKED = 1 << 20  # numbers at once


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs and targets.

    Inputs are tables [n, features], sequences [n, steps, features] or images [n, channels, height,
    width]; targets are [n] int64 class numbers or [n, T] numbers.
    """

    inputs: Array
    targets: Array


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are whose text and gaps are to be encoded.

    Attributes:
        names: [C].
        labels: [C] Texts by the numbers that stand for them; None for a column of numbers.
        missing: What becomes of empty cells: `refuse`, `drop_rows` (both: there are none any
            more), `mean`, `median` or `zero`.
        encode: [C] What becomes of text: `one_hot`, `ordinal` or `frequency`.
        orders: Texts in their order, by the columns' names.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[str, ...] | None, ...]
    missing: str
    encode: tuple[str, ...]
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether there is nothing to encode: only numbers, and no gaps."""
        return self.missing in ("refuse", "drop_rows") and not any(self.labels)


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How the lines of a CSV file are to be read.

    Attributes:
        delimiter: What stands between two cells.
        header: Whether the first line names the columns; without it their names are positions.
        width: Cells of a line.
        decimal: What stands before decimals.
        gaps: Words for an empty cell.
    """

    delimiter: str
    header: bool
    width: int
    decimal: str
    gaps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RawData:
    """Data as read.

    Attributes:
        rows: Everything that is to be split.
        test: The data's own test part, if it has one.
        classes: Labels by class number; None where targets are numbers.
        columns: Names of a table's input columns, in their order.
        table: What is to be encoded of them; None where inputs are numbers as they are.
        layout: Of a CSV file's lines.
        missing: What becomes of a table's empty cells.
        images: Size and mode that images were brought to.
        beside: [n] What the split's column holds of the rows to be split, as text.
        weights: [n] What multiplies each row's training loss; None: rows count alike.
        warnings: What is likely a mistake in the data, in sentences.
    """

    rows: Rows
    test: Rows | None
    classes: tuple[str, ...] | None
    columns: tuple[str, ...] | None = None
    table: Columns | None = None
    layout: TextLayout | None = None
    missing: str | None = None
    images: Mapping[str, Any] | None = None
    beside: Sequence[str] | None = None
    weights: Array | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a source.

    Attributes:
        options: The definition's options for this data.
        targets: What the loss takes; it decides how a table's target column is read.
        directories: Where files may lie.
        room: Where arrays may lie.
        column: What else is to be read, for the split.
    """

    name: str
    options: Mapping[str, Any]
    targets: TargetKind
    directories: tuple[Path, ...]
    room: Room
    column: str | int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of data: which files it reads, and how it is read."""

    files: Callable[[Request], tuple[Path, ...]]
    read: Callable[[Request], RawData]


def find(path: str, directories: tuple[Path, ...]) -> Path:
    """Return the existing file or directory `path` inside one of the data directories.

    Raises:
        DataError: nothing of that name is there, or it lies outside.
    """
    outside = False
    for directory in directories:
        base = directory.resolve()
        found = (base / path).resolve()
        if not found.is_relative_to(base):
            outside = True
        elif found.exists():
            return found
    if outside:
        raise DataError(
            f"path {path!r} leaves the data directories; give a path relative to one of them"
        )
    raise DataError(
        f"no file or directory {path!r} in the data directories; put it there, or correct the path"
    )


def one_path(request: Request) -> str:
    """Return the `path` option.

    Raises:
        DataError: It is missing.
    """
    path = request.options.get("path")
    if not path:
        raise DataError(f"{request.name} data needs `path`, its path in the data directory")
    return str(path)


def check_finite(inputs: Array, name: str) -> None:
    """Raise DataError naming the first row and column that is not a finite number."""
    if inputs.dtype.kind in "biu":
        return
    step = max(1, _CHECKED // max(1, prod(inputs.shape[1:])))
    for start in range(0, len(inputs), step):
        flat = inputs[start : start + step]
        flat = flat.reshape(len(flat), -1)
        if not np.isfinite(flat).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(flat))[0])
            raise DataError(
                f"{name}: row {start + row + 1}, column {column + 1} is {flat[row, column]}; "
                "remove the row or fill in a number"
            )
