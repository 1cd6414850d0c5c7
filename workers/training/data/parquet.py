"""Tables in Parquet files, read in pieces; their own types say what a column is."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuner_service.datasets.columns import Column
from tuner_service.datasets.parquet import Parquet, column_names, kind_of, opened_parquet, type_name
from tuner_service.errors import DataError
from workers.training.data.sources import Array

CELLS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class ParquetBlock:
    """Some rows of a Parquet file; `first` counts the rows before."""

    file: str
    batch: Any
    first: int

    def take(self, column: Column, name: str) -> Array:
        """Return a column's cells [n] as numbers, or as codes of its texts; NaN for gaps.

        Raises:
            DataError: Its type is no data.
        """
        cells = self.batch.column(self.batch.schema.get_field_index(name))
        kind = kind_of(cells.type)
        if kind is None:
            told = f"column {name!r} is of the type {type_name(cells.type)}"
            raise DataError(
                f"{self.file}: {told}; leave it out of `columns`, or save it as numbers or text"
            )

        def where(row: int) -> str:
            return self.place(row, name)

        if kind == "number" and not column.declared:
            return column.take_numbers(_floats(cells), where)
        return column.take_texts([_text(value) for value in cells.to_pylist()], where)

    def texts(self, name: str) -> list[str | None]:
        """Return a column's cells [n] as texts, dates as ISO 8601 has them; None for gaps."""
        cells = self.batch.column(self.batch.schema.get_field_index(name))
        return [_text(value) for value in cells.to_pylist()]

    def place(self, row: int, name: str) -> str:
        """Return where a cell stands."""
        return f"{self.file}: row {self.first + row + 1}, column {name!r}"

    def gap(self, row: int, name: str) -> str:
        """Return the word that stands for an empty cell: there is none."""
        del row, name
        return ""


def parquet_names(file: Path) -> tuple[str, ...]:
    """Return the columns of data.

    Raises:
        DataError: It is no Parquet file, or has no rows.
    """
    with opened_parquet(file) as table:
        if not table.metadata.num_rows:
            raise DataError(f"{file.name} has zero rows of data; it needs some")
        return column_names(table)


def parquet_rows(file: Path) -> int:
    """Return how many rows there are."""
    with opened_parquet(file) as table:
        rows: int = table.metadata.num_rows
        return rows


def parquet_blocks(file: Path, names: Sequence[str]) -> Iterator[ParquetBlock]:
    """Yield the rows in pieces, with these columns."""
    first = 0
    with opened_parquet(file) as table:
        for batch in _batches(table, names):
            yield ParquetBlock(file.name, batch, first)
            first += len(batch)


def _batches(table: Parquet, names: Sequence[str]) -> Iterator[Any]:
    rows = max(1, CELLS_AT_ONCE // len(names))
    yield from table.iter_batches(batch_size=rows, columns=list(dict.fromkeys(names)))


def _floats(cells: Any) -> Array:
    from pyarrow import compute, float64, types  # noqa: PLC0415  an optional dependency

    if types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if types.is_decimal(cells.type):
        plain: Sequence[Any] = [
            None if value is None else float(value) for value in cells.to_pylist()
        ]
        return np.array(plain, np.float64)
    if types.is_boolean(cells.type):
        cells = cells.cast("uint8")
    floats: Array = compute.cast(cells, float64(), safe=False).to_numpy(zero_copy_only=False)
    return floats


def _text(value: Any) -> str | None:
    """Return a cell as a category: whole numbers without a fraction, so that a gap changes none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2.0**63:
        return str(int(value))
    return str(value)
