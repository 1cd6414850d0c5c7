"""Tables from CSV files: one target column, every other column a number.

Options: `path` (a file, or a list of files with the same columns), `target` (a column's name, or
its number from 0, or from the end if negative), `header` (whether the first line names the
columns), `delimiter`, `columns` (the inputs; all but the target by default). Messages count lines
as the file does, from 1.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tuner_service.datasets.inspect import PARQUET_NEEDS
from tuner_service.errors import DataError
from workers.training.datasets.labels import labelled
from workers.training.datasets.sources import Array, RawData, Request, Rows, Source, find

ColumnName = str | int


def _paths(request: Request) -> list[str]:
    path = request.options.get("path")
    paths = [path] if isinstance(path, str) else list(path or [])
    if not paths:
        raise DataError(f"{request.name} data needs `path`, its path in the data directory")
    return [str(one) for one in paths]


def _files(request: Request) -> tuple[Path, ...]:
    files = tuple(find(path, request.directories) for path in _paths(request))
    for file in files:
        if not file.is_file():
            raise DataError(f"{file.name!r} is a directory; `path` must name a CSV file")
    return files


def _parquet(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(file, engine="pyarrow")
    except ImportError as error:
        raise DataError(f"{file.name}: {PARQUET_NEEDS}") from error
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these kinds
        raise DataError(f"cannot read {file.name} as Parquet: {error}") from error
    if frame.empty:
        raise DataError(f"{file.name} has zero rows of data; it needs some")
    return frame


def _csv(file: Path, request: Request) -> pd.DataFrame:
    header = 0 if request.options.get("header", True) else None
    delimiter = str(request.options.get("delimiter") or ",")
    try:
        frame = pd.read_csv(
            file, header=header, sep=delimiter, skipinitialspace=True, skip_blank_lines=False
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{file.name} is empty; it needs rows of data") from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"cannot read {file.name} as CSV: {error}") from error
    if frame.empty:
        raise DataError(f"{file.name} has zero rows of data; it needs some")
    frame.columns = [c.strip() if isinstance(c, str) else c for c in frame.columns]
    return frame


def _column(frame: pd.DataFrame, wanted: ColumnName, file: Path) -> ColumnName:
    """Return the column of this name, or of this number from 0 (negative: from the end)."""
    names: list[ColumnName] = list(frame.columns)
    if wanted in names and not isinstance(wanted, int):
        return wanted
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return names[wanted]
    known = ", ".join(map(str, names[:20]))
    raise DataError(f"{file.name} has no column {wanted!r}; its columns are {known}")


def _line(row: int, request: Request) -> int:
    return row + (2 if request.options.get("header", True) else 1)


def _numbers(series: "pd.Series[Any]", *, file: Path, request: Request) -> Array:
    values: Array = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    if not len(wrong):
        return values
    row = int(wrong[0])
    cell = series.iloc[row]
    where = f"{file.name}: line {_line(row, request)}, column {series.name!r}"
    if isinstance(cell, str):
        raise DataError(
            f"{where} is the text {cell!r} where a number is expected; "
            "encode the column as numbers or leave it out of `columns`"
        )
    raise DataError(f"{where} is empty or not finite; fill in a number or remove the row")


def _input_names(
    frame: pd.DataFrame, target: ColumnName, *, file: Path, request: Request
) -> list[ColumnName]:
    wanted = request.options.get("columns")
    if wanted:
        names = [_column(frame, name, file) for name in wanted]
    else:
        names = [name for name in frame.columns if name != target]
    if target in names:
        raise DataError(f"{file.name}: the target {target!r} is among the input columns")
    if not names:
        raise DataError(f"{file.name} has no column beside the target {target!r}")
    return names


def _inputs(frame: pd.DataFrame, names: list[ColumnName], *, file: Path, request: Request) -> Array:
    return np.stack([_numbers(frame[n], file=file, request=request) for n in names], axis=1)


def _labels(series: "pd.Series[Any]", *, file: Path, request: Request) -> Array:
    """Return the target column as text labels or whole numbers."""
    empty = np.flatnonzero(series.isna().to_numpy())
    if len(empty):
        line = _line(int(empty[0]), request)
        raise DataError(f"{file.name}: line {line}, target {series.name!r} is empty; remove it")
    if not pd.api.types.is_float_dtype(series):
        labels: Array = series.to_numpy()
        return labels
    values: Array = series.to_numpy(dtype=np.float64)
    broken = np.flatnonzero(values != np.round(values))
    if len(broken):
        row = int(broken[0])
        raise DataError(
            f"{file.name}: line {_line(row, request)}, target {series.name!r} is {values[row]}, "
            "which is no class; use whole numbers, or a loss for numbers (mse, mae, huber)"
        )
    return values.astype(np.int64)


def _read(request: Request) -> RawData:
    inputs: list[Array] = []
    targets: list[Array] = []
    columns: list[ColumnName] = []
    for file in _files(request):
        frame = _parquet(file) if request.name == "parquet" else _csv(file, request)
        target = _column(frame, request.options["target"], file)
        read = _numbers if request.targets == "numbers" else _labels
        targets.append(read(frame[target], file=file, request=request))
        names = _input_names(frame, target, file=file, request=request)
        columns = columns or names
        inputs.append(_inputs(frame, names, file=file, request=request))
    if len({part.shape[1] for part in inputs}) > 1:
        counts = ", ".join(str(part.shape[1]) for part in inputs)
        raise DataError(f"the CSV files differ in their number of input columns: {counts}")
    raw = _assemble(np.concatenate(inputs), np.concatenate(targets), request)
    return replace(raw, columns=tuple(map(str, columns)))


def _assemble(inputs: Array, targets: Array, request: Request) -> RawData:
    if request.targets == "numbers":
        return RawData(Rows(inputs, targets[:, None]), None, classes=None)
    return labelled(inputs, targets)


TABLES: dict[str, Source] = {name: Source(_files, _read) for name in ("csv", "parquet")}
