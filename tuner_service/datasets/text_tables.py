"""Tables in text files (CSV): rows as the `csv` module splits them, cells as the text they are.

What a column is, numbers or text, is decided over all of its rows (`columns`), never here.
`predict.py` beside a model reads files alike; tests hold the two against each other.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tuner_service.errors import DataError

MAX_ROW: Final = 1 << 24  # characters of a row; its cells take many times as much memory
CHUNK_ROWS: Final = 1024
CHUNK_CELLS: Final = 1 << 17

_BREAK = re.compile(r"\r\n|\r|\n")
_START = 1 << 12  # bytes that are looked at to tell the encoding


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a table, all of its width, but for lines without a character between them.

    Attributes:
        first: The line that the first of them begins in, from 1.
        blank: How many lines without a character stand before each row, where there are any.
    """

    rows: list[list[str]]
    first: int
    blank: dict[int, int]

    def line(self, row: int, column: int) -> int:
        """Return the line that a cell begins in: cells before it may hold line breaks."""
        before = sum(1 + _breaks(one) for one in self.rows[:row])
        blank = sum(count for at, count in self.blank.items() if at <= row)
        return self.first + before + blank + _breaks(self.rows[row][:column])


class TextTable:
    """A table's names, then its rows.

    Args:
        header: Whether the first row names the columns; their names are positions otherwise.

    Raises:
        DataError: It has no row, or names a column twice.
    """

    def __init__(self, file: IO[str], *, delimiter: str, header: bool) -> None:
        self._lines = _Lines(file)
        self._rows = csv.reader(iter(self._lines), delimiter=delimiter, skipinitialspace=True)
        self._delimiter = delimiter
        self._header = header
        first = self._first()
        self.width = len(first)
        self.names = (
            tuple(cell.strip() for cell in first) if header else tuple(map(str, range(len(first))))
        )
        self._waiting = [] if header else [first]

    def repeated(self) -> str | None:
        """Return what is wrong with names that are there twice, if any are."""
        name, count = Counter(self.names).most_common(1)[0]
        if count < 2:
            return None
        places = [at for at, one in enumerate(self.names, start=1) if one == name]
        return (
            f"the first line names the column {name!r} twice ({places[0]} and {places[1]}); "
            "rename one, or set header to false if it is data"
        )

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows of data; lines without a character are none.

        Raises:
            DataError: A row is wider or narrower than the header, or is no CSV.
        """
        size = max(1, min(CHUNK_ROWS, CHUNK_CELLS // self.width))
        chunk = Chunk(self._waiting, self._began, {})
        for row in self._each():
            if len(row) != self.width:
                if not row and self.width > 1:
                    chunk.blank[len(chunk.rows)] = chunk.blank.get(len(chunk.rows), 0) + 1
                    continue
                row = row or [""]  # a table of one column: its cell is empty
                if len(row) != self.width:
                    chunk.rows.append(row)
                    raise DataError(self._misfit(chunk.line(len(chunk.rows) - 1, 0), len(row)))
            chunk.rows.append(row)
            if len(chunk.rows) == size:
                yield chunk
                chunk = Chunk([], self._rows.line_num + 1, {})
        if chunk.rows:
            yield chunk

    def _first(self) -> list[str]:
        for row in self._each():
            if row:
                last = self._rows.line_num
                self._began = last + 1 if self._header else last - _breaks(row)
                return row
        raise DataError("the file is empty; it needs rows of data")

    def _each(self) -> Iterator[list[str]]:
        lines = self._lines
        try:
            for row in self._rows:
                if lines.ended:  # it asked for more than there is
                    raise DataError(
                        f"the row that ends the file (line {self._rows.line_num}) has a quote that "
                        "is never closed"
                    )
                lines.taken = 0
                yield row
        except UnicodeDecodeError as error:
            raise DataError(
                f"the file is not a text in UTF-8: {error.reason} after line "
                f"{self._rows.line_num}; save it so"
            ) from error
        except csv.Error as error:
            raise DataError(
                f"the file is not a table in CSV: line {self._rows.line_num}: {error}"
            ) from error

    def _misfit(self, line: int, cells: int) -> str:
        belong = f"the first line has {self.width}" if self._header else f"{self.width} belong"
        return (
            f"line {line} has {_cells(cells)} (split at {self._delimiter!r}), but {belong}; every "
            "row needs as many cells as there are columns"
        )


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _breaks(row: Sequence[str]) -> int:
    return sum(len(_BREAK.findall(cell)) for cell in row)


@contextmanager
def opened_table(path: Path, *, delimiter: str, header: bool) -> Iterator[TextTable]:
    """Open a text file as a table.

    Raises:
        DataError: It is no text in UTF-8, or has no row.
    """
    with path.open("rb") as file:
        refuse_other_text(file.read(_START))
    with path.open(encoding="utf-8-sig", newline="") as text:
        yield TextTable(text, delimiter=delimiter, header=header)


def refuse_other_text(start: bytes) -> None:
    """Refuse what is no text in UTF-8, told by a file's first bytes.

    Raises:
        DataError: It is text in UTF-16 or UTF-32, or no text.
    """
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32"}
    marks |= {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    found = next((name for mark, name in marks.items() if start.startswith(mark)), None)
    if found is None and b"\0" in start:
        zeros = [start[at::2].count(0) for at in (0, 1)]
        found = "UTF-16" if max(zeros) > len(start) // 4 and not min(zeros) else None
        if found is None:
            raise DataError(
                "the file is not of a known format: a text table (CSV) has no NUL bytes"
            )
    if found is not None:
        raise DataError(f"the file is a text in {found}; save it in UTF-8")


class _Lines:
    """A text file's lines, of which one row may take so much: a file may be a single one.

    Attributes:
        taken: Characters of the present row so far.
        ended: Whether somebody asked for a line after the last.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.taken = 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        readline, most = self._file.readline, MAX_ROW
        while line := readline(most + 1):
            self.taken += len(line)
            if self.taken > most:
                raise DataError(f"a row is longer than the {most:,} characters that are allowed")
            yield line
        self.ended = True
