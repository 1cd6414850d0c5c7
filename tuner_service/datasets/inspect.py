"""What an uploaded file is, told by its content: format, rows, columns; or why it is refused."""

import csv
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

from tuner_service.datasets.arrays import KINDS, read_headers
from tuner_service.datasets.images import check_zip
from tuner_service.definition.catalogue import Inputs
from tuner_service.definition.uploads import MOST_COLUMNS_KNOWN
from tuner_service.errors import DataError

MAX_ROW: Final = 1 << 24  # characters of a row of CSV; its cells take many times as much memory
MAX_DIRECTORY: Final = 1 << 27  # bytes of a zip's directory, which takes ten times as much memory
DELIMITERS: Final = ",;\t|"
PARQUET_NEEDS: Final = (
    "Parquet needs pyarrow, which is not installed here: pip install 'tuner-service[parquet]', in "
    "the service and in every worker, or bring the table as CSV"
)
_QUOTED = re.compile(r'"[^"]*"')
_START = 1 << 16  # bytes that are looked at to tell the delimiter


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds; the fields are those of an `Upload`."""

    format: str
    rows: int | None = None
    columns: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    inputs: Inputs | None = None


def inspect(path: Path, *, max_bytes: int) -> Contents:
    """Return what the file holds.

    Args:
        max_bytes: Bound on what it may unpack to.

    Raises:
        DataError: It is none of the formats there are, or is broken.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if not start.strip():
        raise DataError("the file is empty; it needs rows of data")
    if start.startswith(b"PK\x03\x04"):
        return _zip(path, max_bytes)
    if start.startswith(b"PAR1"):
        return _parquet(path, max_bytes)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _csv(file, start)


def _zip(path: Path, max_bytes: int) -> Contents:
    try:
        with _OfSmallReads(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"the file is a broken zip: {error}; make it anew") from error
    if all(name.endswith(".npy") for name in names):
        inputs, _ = read_headers(path, max_bytes=max_bytes)
        rows, *shape = inputs.shape
        kind = KINDS[len(inputs.shape)]
        return Contents(format="npz", rows=rows, shape=tuple(shape), inputs=kind)
    found = check_zip(path, max_bytes=max_bytes)
    return Contents(format="images", rows=found.count, shape=found.size, inputs="image")


class _OfSmallReads(io.FileIO):
    """A zip as `ZipFile` may open it: it reads the directory of all files at once, whatever size.

    To look for the directory here first would be to find it elsewhere in a file that is forged.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to so many bytes.

        Raises:
            DataError: They are more than a directory may take.
        """
        if size is not None and size > MAX_DIRECTORY:
            raise DataError(
                f"the zip's directory takes {size:,} bytes, more than the {MAX_DIRECTORY:,} that "
                "are allowed: put fewer files into it, or bring a .npz"
            )
        return super().read(size)


def _parquet(path: Path, max_bytes: int) -> Contents:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415  an optional dependency
    except ImportError as error:
        raise DataError(PARQUET_NEEDS) from error
    try:
        about = parquet.read_metadata(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"the Parquet file cannot be read: {error}") from error
    size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if size > max_bytes:
        raise DataError(
            f"the file unpacks to {size:,} bytes, more than the {max_bytes:,} that are allowed "
            "(TUNER_MAX_DATASET_BYTES)"
        )
    if not about.num_rows:
        raise DataError("the Parquet file has no rows; it needs some")
    names = tuple(about.schema.to_arrow_schema().names)
    return Contents(
        format="parquet",
        rows=about.num_rows,
        columns=names[:MOST_COLUMNS_KNOWN],
        inputs="table",
    )


def _csv(file: IO[str], start: bytes) -> Contents:
    if b"\0" in start:
        raise DataError("the file is not of a known format: a text table (CSV) has no NUL bytes")
    delimiter = _delimiter(start)
    lines = _Lines(file)
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        header = [cell.strip() for cell in next(rows)]
        count = 0
        lines.begin_row()
        for row in rows:
            count += _count(row, rows.line_num, header)
            lines.begin_row()
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not a text in UTF-8: {error.reason}; save it so") from error
    except (csv.Error, StopIteration) as error:
        raise DataError(f"the file is not a table in CSV: {error}") from error
    if not count:
        raise DataError("the file has a header but no rows of data; it needs some")
    return Contents(
        format="csv", rows=count, columns=tuple(header[:MOST_COLUMNS_KNOWN]), inputs="table"
    )


class _Lines:
    """A text file's lines, of which one row may take so much: a file may be a single one."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._taken = 0

    def begin_row(self) -> None:
        """Take what follows for another row."""
        self._taken = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW + 1)
        self._taken += len(line)
        if self._taken > MAX_ROW:
            raise DataError(f"a row is longer than the {MAX_ROW:,} characters that are allowed")
        if not line:
            raise StopIteration
        return line


def _delimiter(start: bytes) -> str:
    line = start.splitlines()[0].decode("utf-8", "replace")
    outside = _QUOTED.sub("", line)
    return max(DELIMITERS, key=outside.count)  # the comma where there is none of them


def _count(row: list[str], line: int, header: list[str]) -> int:
    if not row:
        return 0  # an empty line
    if len(row) > len(header):
        raise DataError(
            f"line {line} has {len(row)} cells, but the first line {len(header)}; "
            "every row needs as many cells as there are columns"
        )
    return 1
