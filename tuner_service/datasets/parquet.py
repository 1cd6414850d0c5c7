"""Parquet files: which columns they have and which types these are, told by the schema."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from tuner_service.errors import DataError

PARQUET_NEEDS: Final = (
    "Parquet needs pyarrow, which is not installed here: pip install 'tuner-service[parquet]', in "
    "the service and in every worker, or bring the table as CSV"
)
Parquet = Any
"""A `pyarrow.parquet.ParquetFile`; pyarrow is optional."""


@contextmanager
def opened_parquet(path: Path) -> Iterator[Parquet]:
    """Open a Parquet file; what goes wrong in the block is said of the file.

    Raises:
        DataError: It cannot be read, or pyarrow is missing.
    """
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise DataError(PARQUET_NEEDS) from error
    try:
        with parquet.ParquetFile(path) as table:
            yield table
    except (ArrowException, OSError) as error:
        raise DataError(f"the Parquet file cannot be read: {error}") from error


def column_names(table: Parquet) -> tuple[str, ...]:
    """Return the columns of data, without those in which pandas keeps a frame's index.

    Raises:
        DataError: Two have the same name.
    """
    schema = table.schema_arrow
    described = (schema.pandas_metadata or {}).get("index_columns", ())
    index = {one for one in described if isinstance(one, str)}
    name, count = Counter(schema.names).most_common(1)[0] if schema.names else ("", 0)
    if count > 1:
        raise DataError(f"the file has {count} columns of the name {name!r}; rename one")
    return tuple(name for name in schema.names if name not in index)


def type_name(kind: Any) -> str:
    """Return what a message calls an Arrow type: of a list, without its items' name."""
    return re.sub(r"list<\w+: ", "list<", str(kind))


def kind_of(kind: Any) -> Literal["number", "text"] | None:
    """Return what a column of this Arrow type holds, or None where it is no data."""
    from pyarrow import types  # noqa: PLC0415  an optional dependency

    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    if any(is_one(kind) for is_one in (*numbers, types.is_null)):
        return "number"
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return "text" if any(is_one(kind) for is_one in texts) else None
