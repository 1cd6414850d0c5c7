"""What is likely a mistake in a text table, told when it is uploaded and no study is there yet."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tuner_service.datasets.columns import FEW, GAPS, TRUTHS, number, numbers, written
from tuner_service.datasets.text_tables import Chunk

MOST_TEXTS: Final = 10_000  # of one column, which are compared
MOST_WARNINGS: Final = 20


class TableProfile:
    """Counts by column: numbers, texts, gaps; taken chunk by chunk.

    Args:
        header: The first line's cells.
    """

    def __init__(self, header: Sequence[str]) -> None:
        self.rows = 0
        self._header = header
        self._columns = [_ColumnProfile(name) for name in header]

    def add(self, chunk: Chunk) -> None:
        """Take further rows."""
        self.rows += len(chunk.rows)
        for at, cells in enumerate(zip(*chunk.rows, strict=True)):
            self._columns[at].add(cells, chunk, at)

    @property
    def headless(self) -> bool:
        """Whether the first line looks like data: numbers stand above all columns of numbers."""
        below = [column for column in self._columns if column.numbers and not column.texts]
        return bool(below) and all(number(column.name) is not None for column in below)

    def warnings(self) -> Iterator[str]:
        """Yield what a second look might be worth."""
        if self.headless:
            first = ", ".join(self._header[:3])
            yield (
                f"the first line ({first[:60]}, …) looks like data: if the file has no header, set "
                "`header: false` in the study, or its first row is lost"
            )
            return
        for at, name in enumerate(self._header):
            if not name:
                yield (
                    f"column {at + 1} has no name, as an index that a program wrote; leave it out "
                    "with `columns`, or save the table without its index"
                )
        for column in self._columns:
            yield from column.warnings()


class _ColumnProfile:
    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = 0
        self.texts = 0
        self._gaps: Counter[str] = Counter()
        self._different: set[str] = set()
        self._first: tuple[str, int] | None = None  # the first text, and its line

    def add(self, cells: Sequence[str], chunk: Chunk, at: int) -> None:
        """Take further cells."""
        if not _WORDS.intersection(cells) and numbers(cells) is not None:
            self.numbers += len(cells)
            return
        for row, cell in enumerate(cells):
            if cell in _WORDS:
                self._gaps[cell] += 1
            elif number(cell) is not None:
                self.numbers += 1
            else:
                self.texts += 1
                if self._first is None:
                    self._first = cell, chunk.line(row, at)
                if len(self._different) < MOST_TEXTS:
                    self._different.add(cell)

    def warnings(self) -> Iterator[str]:
        """Yield what is likely a mistake, with what to do."""
        words = {word: count for word, count in self._gaps.items() if word}
        if words:
            told = ", ".join(f"{word!r} in {count:,} rows" for word, count in words.items())
            yield (
                f"column {self.name!r} holds {told}, read as empty; if these are values, let "
                "`gaps` list the words that are empty"
            )
        if self._first is not None and not self._different <= TRUTHS.keys():
            yield from self._of_texts(*self._first)

    def _of_texts(self, text: str, line: int) -> Iterator[str]:
        column, different = f"column {self.name!r}", len(self._different)
        told = written(self._different)
        if self.numbers:
            yield (
                f"{column} holds {self.numbers:,} numbers and {self.texts:,} texts, the first "
                f"{text[:40]!r} in line {line}: as an input it is refused, unless it is corrected "
                "or named in `categorical`"
            )
        elif told is not None:
            yield (
                f"{column} holds texts such as {told[0][:40]!r}, which look like {told[1]}, leave "
                "it out of `columns`, or name it in `categorical`"
            )
        elif different > FEW and different > self.texts / 2:
            yield (
                f"column {self.name!r} has {different:,} different texts in {self.texts:,} rows, "
                "each of which would be a category; leave it out with `columns` if it is no target"
            )


_WORDS = frozenset(GAPS)


def bounded(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return the first warnings, and how many more there are."""
    told = list(warnings)
    more = len(told) - MOST_WARNINGS
    return (*told[:MOST_WARNINGS], *([f"and {more:,} more"] if more > 0 else []))
