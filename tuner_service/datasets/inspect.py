"""What an uploaded file is, told by its content: format, rows, columns; or why it is refused."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tuner_service.definition.catalogue import Inputs
from tuner_service.errors import DataError

MAX_COLUMNS_KEPT: Final = 1000
DELIMITERS: Final = ",;\t|"
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
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _csv(file, start)


def _csv(file: IO[str], start: bytes) -> Contents:
    if b"\0" in start:
        raise DataError("the file is not of a known format: a text table (CSV) has no NUL bytes")
    delimiter = _delimiter(start)
    rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    try:
        header = [cell.strip() for cell in next(rows)]
        count = sum(_count(row, rows.line_num, header) for row in rows)
    except UnicodeDecodeError as error:
        raise DataError(f"the file is not a text in UTF-8: {error.reason}; save it so") from error
    except (csv.Error, StopIteration) as error:
        raise DataError(f"the file is not a table in CSV: {error}") from error
    if not count:
        raise DataError("the file has a header but no rows of data; it needs some")
    return Contents(
        format="csv", rows=count, columns=tuple(header[:MAX_COLUMNS_KEPT]), inputs="table"
    )


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
