"""What an uploaded file is, told by its content: format, rows, columns; or why it is refused."""

import csv
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuner_service.datasets.arrays import KINDS, check_whole, read_headers
from tuner_service.datasets.images import check_zip
from tuner_service.datasets.parquet import column_names, kind_of, opened_parquet, type_name
from tuner_service.datasets.profile import TableProfile, bounded
from tuner_service.datasets.text_tables import opened_table, refuse_other_text
from tuner_service.definition.catalogue import Inputs
from tuner_service.definition.uploads import MOST_COLUMNS_KNOWN
from tuner_service.errors import DataError

MAX_DIRECTORY: Final = 1 << 27  # bytes of a zip's directory, which takes ten times as much memory
DELIMITERS: Final = ",;\t|"
BYTES_OF_A_NUMBER: Final = 4  # as a table's cell is trained on
_QUOTED = re.compile(r'"[^"]*"')
_START = 1 << 16  # bytes that are looked at to tell the delimiter
_ROWS_TRIED = 100


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds; the fields are those of an `Upload`."""

    format: str
    rows: int | None = None
    columns: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    inputs: Inputs | None = None
    delimiter: str | None = None
    warnings: tuple[str, ...] = ()


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
    return _csv(path, start, max_bytes)


def _zip(path: Path, max_bytes: int) -> Contents:
    try:
        with _OfSmallReads(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"the file is a broken zip: {error}; make it anew") from error
    if all(name.endswith(".npy") for name in names):
        inputs, _ = read_headers(path, max_bytes=max_bytes)
        check_whole(path)
        rows, *shape = inputs.shape
        kind = KINDS[len(inputs.shape)]
        return Contents(format="npz", rows=rows, shape=tuple(shape), inputs=kind)
    found = check_zip(path, max_bytes=max_bytes)
    return Contents(
        format="images",
        rows=found.count,
        shape=found.size,
        inputs="image",
        warnings=found.warnings,
    )


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
    with opened_parquet(path) as table:
        about, names = table.metadata, column_names(table)
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        # Runs of equal values take next to nothing in the file: what it becomes is what counts.
        size = max(size, about.num_rows * len(names) * BYTES_OF_A_NUMBER)
        others = [
            f"column {name!r} is of the type {type_name(kind)}, which is no data; leave it out of "
            "`columns`"
            for name in names
            if kind_of(kind := table.schema_arrow.field(name).type) is None
        ]
    if size > max_bytes:
        raise DataError(
            f"the file unpacks to {size:,} bytes, more than the {max_bytes:,} that are allowed "
            "(TUNER_MAX_DATASET_BYTES)"
        )
    if not about.num_rows:
        raise DataError("the Parquet file has no rows; it needs some")
    return Contents(
        format="parquet",
        rows=about.num_rows,
        columns=names[:MOST_COLUMNS_KNOWN],
        inputs="table",
        warnings=bounded(others),
    )


def _csv(path: Path, start: bytes, max_bytes: int) -> Contents:
    refuse_other_text(start)
    delimiter = _delimiter(start)
    with opened_table(path, delimiter=delimiter, header=True) as table:
        profile = TableProfile(table.names)
        for chunk in table.chunks():
            profile.add(chunk)
    repeated = table.repeated()
    if repeated is not None and not profile.headless:
        raise DataError(repeated)
    if not profile.rows:
        raise DataError("the file has a header but no rows of data; it needs some")
    if profile.rows * table.width * BYTES_OF_A_NUMBER > max_bytes:
        raise DataError(
            f"the file unpacks to {profile.rows:,} rows of {table.width:,} columns, more than the "
            f"{max_bytes:,} bytes that are allowed (TUNER_MAX_DATASET_BYTES)"
        )
    return Contents(
        format="csv",
        rows=profile.rows,
        columns=table.names[:MOST_COLUMNS_KNOWN],
        inputs="table",
        delimiter=delimiter,
        warnings=bounded(profile.warnings()),
    )


def _delimiter(start: bytes) -> str:
    """Return what splits the first rows into as many cells each; of several, the first we know."""
    lines = start.decode("utf-8-sig", "replace").splitlines(keepends=True)
    if len(start) == _START and len(lines) > 1:
        lines.pop()  # it is cut
    outside = _QUOTED.sub("", next((line for line in lines if line.strip()), ""))
    for delimiter in DELIMITERS:
        widths = {len(row) for row in _split(lines[:_ROWS_TRIED], delimiter) if row}
        if len(widths) == 1 and widths != {1} and delimiter in outside:
            return delimiter
    return max(DELIMITERS, key=outside.count)  # the comma where there is none of them


def _split(lines: list[str], delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return []
