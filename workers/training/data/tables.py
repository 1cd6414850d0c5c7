"""Tables from CSV and Parquet files: one target column, the others numbers or categories.

Options: `path` (a file, or a list of files with the same columns), `target` (a column's name, or
its number from 0, or from the end if negative), `header` (whether the first line names the
columns), `delimiter`, `columns` (the inputs; all but the target by default), `categorical` (columns
of numbers that are categories), `missing`, `encode`. Messages count lines as the file does, from 1.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tuner_service.datasets.inspect import PARQUET_NEEDS
from tuner_service.errors import DataError
from workers.training.data.labels import first_without_class, labelled
from workers.training.data.sources import (
    Array,
    Columns,
    RawData,
    Request,
    Rows,
    Source,
    TextLayout,
    find,
)

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
            raise DataError(f"{file.name!r} is not a file; `path` must name a CSV file")
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
    header = 0 if _has_header(request) else None
    try:
        frame = pd.read_csv(
            file,
            header=header,
            sep=_delimiter(request),
            skipinitialspace=True,
            skip_blank_lines=False,
        )
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{file.name} is empty; it needs rows of data") from error
    except (pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"cannot read {file.name} as CSV: {error}") from error
    if frame.empty:
        raise DataError(f"{file.name} has zero rows of data; it needs some")
    frame.columns = [c.strip() if isinstance(c, str) else c for c in frame.columns]
    return frame


def _has_header(request: Request) -> bool:
    return bool(request.options.get("header", True))


def _delimiter(request: Request) -> str:
    return str(request.options.get("delimiter") or ",")


def _layout(frame: pd.DataFrame, request: Request) -> TextLayout | None:
    if request.name != "csv":
        return None
    return TextLayout(_delimiter(request), _has_header(request), frame.shape[1])


def _column(frame: pd.DataFrame, wanted: ColumnName, file: Path) -> ColumnName:
    """Return the column of this name, or of this number from 0 (negative: from the end)."""
    names: list[ColumnName] = list(frame.columns)
    if wanted in names and not isinstance(wanted, int):
        return wanted
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return names[wanted]
    known = ", ".join(map(str, names[:20]))
    raise DataError(f"{file.name} has no column {wanted!r}; its columns are {known}")


def _where(series: "pd.Series[Any]", row: int, file: Path, request: Request) -> str:
    """Return where a cell is: a text file's line, or another's row."""
    at = int(series.index[row])  # as in the file, also after rows were dropped
    if request.name != "csv":
        return f"{file.name}: row {at + 1}, column {series.name!r}"
    line = at + (2 if _has_header(request) else 1)
    return f"{file.name}: line {line}, column {series.name!r}"


def _numbers(series: "pd.Series[Any]", *, file: Path, request: Request) -> Array:
    """Return a column that must hold numbers; NaN for empty cells, if these are allowed."""
    values: Array = pd.to_numeric(series, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    empty = series.isna().to_numpy()
    wrong = np.flatnonzero(~np.isfinite(values) & ~empty)
    if len(wrong):
        row = int(wrong[0])
        cell, where = series.iloc[row], _where(series, row, file, request)
        if isinstance(cell, str) and not np.isinf(values[row]):
            raise DataError(
                f"{where} is the text {cell!r} where a number is expected; correct it, name the "
                "column in `categorical`, or leave it out of `columns`"
            )
        raise DataError(f"{where} is not finite; fill in a number or remove the row")
    return values


def _check_gaps(series: "pd.Series[Any]", *, file: Path, request: Request) -> None:
    """Refuse empty cells, unless the study says what becomes of them."""
    if request.options.get("missing", "refuse") != "refuse":
        return
    empty = np.flatnonzero(series.isna().to_numpy())
    if len(empty):
        raise DataError(
            f"{_where(series, int(empty[0]), file, request)} is empty; fill it in, or let "
            "`missing` say what becomes of it (drop_rows, mean, median, zero)"
        )


def _texts(series: "pd.Series[Any]") -> Array:
    """Return a column's cells as text; None for empty ones."""
    numbers = pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_bool_dtype(series)
    whole = numbers and (series.dropna() % 1 == 0).all()  # a gap makes whole numbers floats
    plain = series.astype("Int64") if whole else series
    texts: Array = plain.astype(str).to_numpy(dtype=object)
    texts[series.isna().to_numpy()] = None
    return texts


def _is_text(series: "pd.Series[Any]", *, file: Path) -> bool:
    """Return whether a column holds categories: it has text, and no cell is a number."""
    if pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series):
        return False
    kinds = (pd.api.types.is_string_dtype, pd.api.types.is_object_dtype)
    if not any(kind(series) for kind in kinds) and not isinstance(
        series.dtype, pd.CategoricalDtype
    ):
        raise DataError(
            f"{file.name}: column {series.name!r} is of the type {series.dtype}; leave it out of "
            "`columns`, or save it as numbers or text"
        )
    present = series.dropna()
    return bool(len(present)) and pd.to_numeric(present, errors="coerce").isna().all()


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


def _inputs(
    frame: pd.DataFrame, names: list[ColumnName], *, file: Path, request: Request
) -> list[Array]:
    """Return the input columns, each [n]: float64 numbers, or texts."""
    declared = {_column(frame, name, file) for name in request.options.get("categorical") or ()}
    unused = sorted(map(str, declared - set(names)))
    if unused:
        raise DataError(f"{file.name}: {unused[0]!r} of `categorical` is no input column")
    columns = []
    for name in names:
        series = frame[name]
        _check_gaps(series, file=file, request=request)
        if name in declared or _is_text(series, file=file):
            columns.append(_texts(series))
        else:
            columns.append(_numbers(series, file=file, request=request))
    return columns


def _target(series: "pd.Series[Any]", *, file: Path, request: Request) -> Array:
    """Return the target column as numbers, or as labels: text or whole numbers."""
    empty = np.flatnonzero(series.isna().to_numpy())
    if len(empty):
        where = _where(series, int(empty[0]), file, request)
        raise DataError(
            f"{where} is the target and empty; fill it in, or set `missing` to drop_rows"
        )
    if request.targets == "numbers":
        return _numbers(series, file=file, request=request)
    if not pd.api.types.is_float_dtype(series):
        labels: Array = series.to_numpy()
        return labels
    values: Array = series.to_numpy(dtype=np.float64)
    row = first_without_class(values)
    if row is not None:
        raise DataError(
            f"{_where(series, row, file, request)} is the target and {values[row]}, which is no "
            "class; use whole numbers, or a loss for numbers (mse, mae, huber)"
        )
    return values.astype(np.int64)


def _read(request: Request) -> RawData:
    inputs: list[list[Array]] = []
    targets: list[Array] = []
    names: list[ColumnName] = []
    layout: TextLayout | None = None
    for file in _files(request):
        frame = _parquet(file) if request.name == "parquet" else _csv(file, request)
        target = _column(frame, request.options["target"], file)
        own = _input_names(frame, target, file=file, request=request)
        names, layout = names or own, layout or _layout(frame, request)
        if len(own) != len(names):
            raise DataError(
                f"the files differ in their number of input columns: {len(names)} and {len(own)}"
            )
        if request.options.get("missing") == "drop_rows":
            frame = _without_gaps(frame[[*own, target]], file)
        targets.append(_target(frame[target], file=file, request=request))
        inputs.append(_inputs(frame, own, file=file, request=request))
    values, table = _joined(inputs, tuple(map(str, names)), request)
    joined = np.concatenate(targets)
    columns, encoded = table.names, None if table.plain else table
    if request.targets == "numbers":
        read = RawData(Rows(values, joined[:, None]), None, classes=None)
    else:
        read = labelled(values, joined)
    return replace(read, columns=columns, table=encoded, layout=layout)


def _without_gaps(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    whole = frame.dropna()
    if whole.empty:
        raise DataError(f"{file.name}: every row has an empty cell; drop_rows leaves none")
    return whole


def _joined(
    files: list[list[Array]], names: tuple[str, ...], request: Request
) -> tuple[Array, Columns]:
    """Return the columns of all files as one table [n, C], text as numbers of its labels."""
    values: list[Array] = []
    labels: list[tuple[str, ...] | None] = []
    for name, parts in zip(names, zip(*files, strict=True), strict=True):
        texts = [part.dtype == object for part in parts]
        if any(texts) and not all(texts):
            raise DataError(
                f"column {name!r} is text in one file and numbers in another; name it in "
                "`categorical`, or correct it"
            )
        column = np.concatenate(parts)
        codes, known = _coded(column) if all(texts) else (column, None)
        values.append(codes)
        labels.append(known)
    table = Columns(
        names,
        tuple(labels),
        missing=str(request.options.get("missing") or "refuse"),
        encode=str(request.options.get("encode") or "one_hot"),
    )
    return np.stack(values, axis=1), table


def _coded(texts: Array) -> tuple[Array, tuple[str, ...]]:
    """Return the numbers of texts among their labels, ascending; NaN for None."""
    present = np.array([text is not None for text in texts])
    known, numbers = np.unique(texts[present].astype(str), return_inverse=True)
    codes = np.full(len(texts), np.nan)
    codes[present] = numbers
    return codes, tuple(str(label) for label in known)


TABLES: dict[str, Source] = {name: Source(_files, _read) for name in ("csv", "parquet")}
