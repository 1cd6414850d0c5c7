"""Tables from CSV and Parquet files: one target column, the others numbers or categories.

Options: `path` (a file, or a list of files with the same columns), `test_path`, `target` (a
column's name, or its number from 0, or from the end if negative), `columns` (the inputs; by default
all but the target and the split's column), `categorical` (numbers that are categories), `missing`,
`encode`; of a text file also `header` (whether the first line names the columns), `delimiter`,
`decimal`, `gaps` (words for an empty cell). Messages count lines as the file does, from 1.

    n  rows,  C  input columns

Both kinds of file are read block by block; what a column is, is decided over all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tuner_service.datasets.columns import GAPS, Column, number, whole
from tuner_service.datasets.text_tables import Chunk, TextTable, opened_table
from tuner_service.errors import DataError
from workers.training.data.parquet import parquet_blocks, parquet_names, parquet_rows
from workers.training.data.room import Room
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


class Block(Protocol):
    """Some rows of a file."""

    def take(self, column: Column, name: str) -> Array:
        """Return a column's cells [n]: numbers, or codes of its texts; NaN for gaps."""

    def texts(self, name: str) -> list[str | None]:
        """Return a column's cells [n] as texts; None for gaps."""

    def place(self, row: int, name: str) -> str:
        """Return where a cell stands."""

    def gap(self, row: int, name: str) -> str:
        """Return the word that stands for an empty cell."""


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Some rows of a text file."""

    file: str
    names: tuple[str, ...]
    header: bool
    chunk: Chunk
    cells: list[tuple[str, ...]]
    gaps: frozenset[str]

    def take(self, column: Column, name: str) -> Array:
        """Return a column's cells [n]: numbers, or codes of its texts; NaN for gaps."""
        at = self.names.index(name)
        return column.take(self.cells[at], lambda row: self.place(row, name))

    def texts(self, name: str) -> list[str | None]:
        """Return a column's cells [n] as texts; None for gaps."""
        cells = self.cells[self.names.index(name)]
        return [None if cell in self.gaps else cell for cell in cells]

    def place(self, row: int, name: str) -> str:
        """Return where a cell stands."""
        line = self.chunk.line(row, self.names.index(name))
        return f"{self.file}: line {line}, column {repr(name) if self.header else name}"

    def gap(self, row: int, name: str) -> str:
        """Return the word that stands for an empty cell."""
        return self.cells[self.names.index(name)][row]


def _paths(request: Request, option: str) -> list[str]:
    path = request.options.get(option)
    return [path] if isinstance(path, str) else [str(one) for one in path or []]


def _files(request: Request) -> tuple[Path, ...]:
    """Return the files, and after them those of the test part."""
    paths = _paths(request, "path")
    if not paths:
        raise DataError(f"{request.name} data needs `path`, its path in the data directory")
    every = (*paths, *_paths(request, "test_path"))
    files = tuple(find(path, request.directories) for path in every)
    for file in files:
        if not file.is_file():
            raise DataError(f"{file.name!r} is not a file; `path` must name a table")
    return files


def gaps_of(request: Request) -> tuple[str, ...]:
    """Return the words for an empty cell of a text file; no text always is one."""
    given = request.options.get("gaps")
    return GAPS if given is None else tuple(dict.fromkeys(("", *map(str, given))))


def _delimiter(request: Request) -> str:
    return str(request.options.get("delimiter") or ",")


def _decimal(request: Request) -> str:
    return str(request.options.get("decimal") or ".")


def _has_header(request: Request) -> bool:
    return bool(request.options.get("header", True))


def _layout(names: Sequence[str], request: Request) -> TextLayout | None:
    if request.name != "csv":
        return None
    return TextLayout(
        delimiter=_delimiter(request),
        header=_has_header(request),
        width=len(names),
        decimal=_decimal(request),
        gaps=gaps_of(request),
    )


def _opened(table: TextTable) -> TextTable:
    repeated = table.repeated()
    if repeated is not None:
        raise DataError(repeated)
    return table


def _names(file: Path, request: Request) -> tuple[str, ...]:
    if request.name == "parquet":
        return parquet_names(file)
    with opened_table(file, delimiter=_delimiter(request), header=_has_header(request)) as table:
        return _opened(table).names


def _blocks(file: Path, used: Sequence[str], request: Request) -> Iterator[Block]:
    """Yield a file's rows in blocks, none of them empty."""
    if request.name == "parquet":
        yield from parquet_blocks(file, used)
        return
    gaps = frozenset(gaps_of(request))
    with opened_table(file, delimiter=_delimiter(request), header=_has_header(request)) as table:
        for chunk in _opened(table).chunks():
            cells = list(zip(*chunk.rows, strict=True))
            yield TextBlock(file.name, table.names, _has_header(request), chunk, cells, gaps)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns that a study uses of a table, by name."""

    target: str
    inputs: tuple[str, ...]
    declared: frozenset[str]
    beside: str | None
    weight: str | None

    @property
    def used(self) -> tuple[str, ...]:
        """Inputs, then the target."""
        return (*self.inputs, self.target)

    @property
    def read(self) -> tuple[str, ...]:
        """Those, and what the split and the rows' weights go by."""
        others = (self.beside, self.weight)
        return tuple(dict.fromkeys((*self.used, *(name for name in others if name is not None))))


def _column(names: Sequence[str], wanted: ColumnName) -> str:
    """Return the column of this name, or of this number from 0 (negative: from the end)."""
    if isinstance(wanted, int) and -len(names) <= wanted < len(names):
        return names[wanted]
    if isinstance(wanted, str) and wanted.strip() in names:
        return wanted if wanted in names else wanted.strip()
    raise DataError(f"there is no column {wanted!r}; its columns are {', '.join(names[:20])}")


def _chosen(names: Sequence[str], request: Request) -> Chosen:
    target = _column(names, request.options["target"])
    wanted = request.options.get("columns")
    inputs = [_column(names, one) for one in wanted or ()]
    beside = None if request.column is None else _column(names, request.column)
    if beside == target:
        raise DataError(f"the target {target!r} cannot be what the split goes by")
    named = request.options.get("weight")
    weight = None if named is None else _column(names, named)
    if weight in (target, *inputs):
        raise DataError(f"the rows' weight {weight!r} is the target or an input, too")
    apart = (target, beside, weight)
    inputs = list(dict.fromkeys(inputs)) or [name for name in names if name not in apart]
    if target in inputs:
        raise DataError(f"the target {target!r} is among the input columns")
    if not inputs:
        raise DataError(f"there is no column beside the target {target!r}")
    declared = {_column(names, one) for one in request.options.get("categorical") or ()}
    unused = sorted(declared - set(inputs))
    if unused:
        raise DataError(f"{unused[0]!r} of `categorical` is no input column")
    return Chosen(target, tuple(inputs), frozenset(declared), beside, weight)


def _check_same(names: Sequence[str], first: Sequence[str], used: Sequence[str]) -> None:
    """Refuse a further file without the columns of the first one."""
    absent = [name for name in used if name not in names]
    if absent or len(names) != len(first):
        told = f"it has no column {absent[0]!r}" if absent else f"it has {len(names)} columns"
        raise DataError(
            f"{told}, but the first file has {', '.join(first[:20])}; several files must have the "
            "same columns"
        )


class _Inputs:
    """A table [n, C] that grows: in its place from the start where its most rows are known."""

    def __init__(self, room: Room, columns: int, rows: int | None) -> None:
        self._room = room
        self._blocks: list[Array] = []
        self._columns = columns
        self._rows = 0
        self._values = None if rows is None else self._array(rows)

    def append(self, block: Array) -> None:
        """Take further rows."""
        if self._values is None:
            self._blocks.append(block)
        else:
            self._values[self._rows : self._rows + len(block)] = block
        self._rows += len(block)

    def joined(self) -> Array:
        """Return the table, in memory if it fits there."""
        if self._values is None:
            blocks, self._blocks, self._rows = self._blocks, [], 0
            self._values = self._array(sum(map(len, blocks)))
            for block in blocks:
                self.append(block)
        return self._values[: self._rows]

    def _array(self, rows: int) -> Array:
        return self._room.array((rows, self._columns), np.dtype(np.float64))


class _Reader:
    """Columns of one table, filled block by block.

    Args:
        rows: The most there are, where the files say it.
    """

    def __init__(self, chosen: Chosen, request: Request, *, rows: int | None) -> None:
        self._chosen = chosen
        self._request = request
        self._missing = str(request.options.get("missing") or "refuse")
        classes = request.targets != "numbers"
        self._columns = [self._reads(name, name in chosen.declared) for name in chosen.inputs]
        self._target = self._reads(chosen.target, classes)
        self._fraction: str | None = None  # what is wrong with the first target that is no class
        self._seen = 0  # labels of the target that were looked at
        self._inputs = _Inputs(request.room, len(chosen.inputs), rows)
        self._targets: list[Array] = []
        self._beside: list[str | None] = []
        self._weights: list[Array] = []
        self._weight = self._reads(chosen.weight, False) if chosen.weight else None
        self._own: int | None = None  # rows before those of the test files
        self._rows = 0
        self._words: Counter[str] = Counter()  # gaps of the rows that were left out

    def _reads(self, name: str, declared: bool) -> Column:
        if self._request.name == "parquet":
            return Column(name, declared=declared, typed=True)
        decimal = _decimal(self._request)
        return Column(name, gaps=gaps_of(self._request), decimal=decimal, declared=declared)

    def begin_file(self) -> None:
        """Take what follows for another file."""
        for column in (*self._columns, self._target, *([self._weight] if self._weight else [])):
            column.begin_file()

    def add(self, block: Block) -> None:
        """Take a block.

        Raises:
            DataError: A cell is not what its column holds, or is empty.
        """
        names = self._chosen.inputs
        target = block.take(self._target, self._chosen.target)
        taken = [block.take(c, name) for c, name in zip(self._columns, names, strict=True)]
        inputs = np.stack(taken, axis=1)
        self._rows += len(target)
        beside = block.texts(self._chosen.beside) if self._chosen.beside else []
        self._check_beside(block, beside)
        weights = self._weighed(block, len(target))
        if self._missing == "drop_rows":
            whole = ~(np.isnan(inputs).any(axis=1) | np.isnan(target))
            weights = weights[whole]
            beside = [text for text, kept in zip(beside, whole, strict=False) if kept]
            inputs, target = self._whole_rows(block, inputs, target)
        else:
            self._check_gaps(block, inputs, target)
        self._check_labels(block, target)
        self._inputs.append(inputs)
        self._targets.append(target)
        self._beside += beside
        self._weights.append(weights)

    def begin_test(self) -> None:
        """Take what follows for the test part."""
        self._own = sum(map(len, self._targets))

    def _weighed(self, block: Block, rows: int) -> Array:
        """Return the rows' weights [n]; ones where the study names none.

        Raises:
            DataError: One is empty, below 0, or no number.
        """
        name = self._chosen.weight
        if name is None or self._weight is None:
            return np.ones(rows)
        weights = block.take(self._weight, name)
        if self._weight.is_text:
            raise DataError(f"column {name!r} holds texts, but the rows' weights must be numbers")
        wrong = np.flatnonzero(~(weights >= 0))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{block.place(row, name)} is {weights[row]}, but the rows' weights must be "
                "numbers from 0 on"
            )
        return weights

    def _check_beside(self, block: Block, beside: Sequence[str | None]) -> None:
        if self._chosen.beside and None in beside:
            row = beside.index(None)
            raise DataError(
                f"{self._empty(block, row, self._chosen.beside)}, and the split goes by it; "
                "fill it in"
            )

    def _whole_rows(self, block: Block, inputs: Array, target: Array) -> tuple[Array, Array]:
        empty = np.isnan(inputs).any(axis=1) | np.isnan(target)
        for row in np.flatnonzero(empty):
            at = [*np.flatnonzero(np.isnan(inputs[row])), len(self._columns)][0]
            self._words[block.gap(int(row), self._chosen.used[int(at)])] += 1
        return inputs[~empty], target[~empty]

    def _check_gaps(self, block: Block, inputs: Array, target: Array) -> None:
        """Refuse empty cells, unless the study says what becomes of them."""
        empty = np.flatnonzero(np.isnan(target))
        if len(empty):
            raise DataError(
                f"{self._empty(block, int(empty[0]), self._chosen.target)}, and it is the target; "
                "fill it in, or set `missing` to drop_rows"
            )
        gaps = np.argwhere(np.isnan(inputs))
        if len(gaps) and self._missing == "refuse":
            row, at = (int(one) for one in gaps[0])
            raise DataError(
                f"{self._empty(block, row, self._chosen.inputs[at])}; fill it in, or let `missing` "
                "say what becomes of it (drop_rows, mean, median, zero)"
            )

    def _empty(self, block: Block, row: int, name: str) -> str:
        word, place = block.gap(row, name), block.place(row, name)
        if not word:
            return f"{place} is empty"
        return f"{place} holds {word!r}, which is read as empty (`gaps` lists the words that are)"

    def _check_labels(self, block: Block, target: Array) -> None:
        """Note the first number among the target's labels that is no class."""
        new = self._target.texts[self._seen :] if self._request.targets != "numbers" else []
        self._seen += len(new)
        for code, label in enumerate(new, start=self._seen - len(new)):
            value = None if self._fraction else number(label, _decimal(self._request))
            if value is None or whole(label) is not None or value.is_integer():
                continue
            rows = np.flatnonzero(target == code)
            if len(rows):  # else its row was left out
                where = block.place(int(rows[0]), self._chosen.target)
                self._fraction = (
                    f"{where} is the target and {value}, which is no class; use whole numbers, or "
                    "a loss for numbers (mse, mae, huber)"
                )

    def data(self) -> RawData:
        """Return the table.

        Raises:
            DataError: There is no row, or the target is not what the loss takes.
        """
        rows = sum(map(len, self._targets))
        if not rows and self._rows:
            raise DataError("every row has an empty cell; drop_rows leaves none")
        if not rows:
            raise DataError("there are zero rows of data; it needs some")
        target = np.concatenate(self._targets)
        values = self._inputs.joined()
        labels = tuple(column.labels(values[:, at]) for at, column in enumerate(self._columns))
        doubts = [column.doubt() for column in self._columns]
        table = Columns(
            self._chosen.inputs,
            labels,
            missing=self._missing,
            encode=self._encodings(labels),
            orders=self._request.options.get("orders") or {},
        )
        targets, classes = (
            self._numbers(target) if self._request.targets == "numbers" else (self._classes(target))
        )
        own = rows if self._own is None else self._own
        if not own or (self._own is not None and own == rows):
            part = "`test_path`" if own else "`path`"
            raise DataError(f"there are zero rows of data in {part}; it needs some")
        return RawData(
            Rows(values[:own], targets[:own]),
            None if self._own is None else Rows(values[own:], targets[own:]),
            classes=classes,
            columns=self._chosen.inputs,
            table=None if table.plain else table,
            missing=self._missing,
            weights=np.concatenate(self._weights)[:own] if self._chosen.weight else None,
            beside=[one or "" for one in self._beside[:own]] if self._chosen.beside else None,
            warnings=tuple(doubt for doubt in (self._dropped(rows), *doubts) if doubt),
        )

    def _encodings(self, labels: Sequence[tuple[str, ...] | None]) -> tuple[str, ...]:
        """Return what becomes of each column's texts.

        Raises:
            DataError: A column is named that holds no categories.
        """
        names, options = self._chosen.inputs, self._request.options
        given, orders = options.get("encode") or "one_hot", options.get("orders") or {}
        by_name = given if isinstance(given, Mapping) else {}
        for option, named in (("encode", by_name), ("orders", orders)):
            for name in named:
                if name not in names or labels[names.index(name)] is None:
                    told = "holds numbers; name it in `categorical`" if name in names else "is none"
                    raise DataError(
                        f"{name!r} of `{option}` must be an input of categories, but {told}"
                    )
        usual = "one_hot" if isinstance(given, Mapping) else str(given)
        return tuple(
            "ordinal" if name in orders else str(by_name.get(name, usual)) for name in names
        )

    def _numbers(self, target: Array) -> tuple[Array, None]:
        self._target.labels(target)
        if self._target.is_text:
            assert self._target.first_text is not None
            text, place = self._target.first_text
            raise DataError(
                f"{place} is the text {text!r} where a number is expected; correct it, or take a "
                "loss for classes (cross_entropy)"
            )
        return target[:, None], None

    def _classes(self, target: Array) -> tuple[Array, tuple[str, ...]]:
        """Return class numbers [n] and labels: whole numbers by value, else by their text."""
        labels = self._target.labels(target) or ()
        there = np.unique(target.astype(np.int64))
        found = [labels[code] for code in there]
        values = [number(label, _decimal(self._request)) for label in found]
        if None not in values:
            if self._fraction is not None:
                raise DataError(self._fraction)
            found = [label for _, label in sorted(zip(values, found, strict=True))]
        place = {label: at for at, label in enumerate(found)}
        codes = np.array([place.get(label, -1) for label in labels], np.int64)
        return codes[target.astype(np.int64)], tuple(found)

    def _dropped(self, left: int) -> str | None:
        if left == self._rows:
            return None
        words = ", ".join(f"{word!r} in {count:,}" for word, count in self._words.items() if word)
        return (
            f"`missing: drop_rows` left out {self._rows - left:,} of {self._rows:,} rows, for an "
            f"empty cell in each{f' (read as empty: {words}; see `gaps`)' if words else ''}"
        )


def _read(request: Request) -> RawData:
    files = _files(request)
    with _said_of(files[0]):
        first, rows = _names(files[0], request), _most_rows(files, request)
        chosen = _chosen(first, request)
        reader = _Reader(chosen, request, rows=rows)
    own = len(_paths(request, "path"))
    for at, file in enumerate(files):
        with _said_of(file):
            _check_same(_names(file, request), first, chosen.read)
            reader.begin_file()
            if at == own:
                reader.begin_test()
            for block in _blocks(file, chosen.read, request):
                reader.add(block)
    with _said_of(files[0]):
        return replace(reader.data(), layout=_layout(first, request))


@contextmanager
def _said_of(file: Path) -> Iterator[None]:
    """Name the file in what is said of data, unless it is named already."""
    try:
        yield
    except DataError as error:
        said = str(error)
        raise DataError(said if file.name in said else f"{file.name}: {said}") from error


def _most_rows(files: Sequence[Path], request: Request) -> int | None:
    return sum(map(parquet_rows, files)) if request.name == "parquet" else None


TABLES: dict[str, Source] = {name: Source(_files, _read) for name in ("csv", "parquet")}
