"""Any CSV file: training reads what `csv` and `pyarrow` read, cell by cell; so does predict.py."""

import csv
import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import csv as arrow_csv
from torch import nn

from tests.unit.training.rooms import room
from tuner_service.datasets import text_tables
from tuner_service.datasets.columns import GAPS, number, whole
from tuner_service.datasets.inspect import inspect
from tuner_service.datasets.text_tables import opened_table
from tuner_service.errors import DataError
from workers.training.bundle import predict
from workers.training.data.sources import RawData, Request
from workers.training.data.tables import TABLES

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORDS = st.sampled_from(
    ["a", "AB", "true", "True", "01", "1", "1.0", "1.10", "-0", "0x1F", "1_000", "١", "é", "日本",
     "nan", "inf", "x y", "5%", "3,14", "2024-01-31", "123456789012345678", str(2**64), "1e5"]
)  # fmt: skip
TEXTS = st.lists(st.sampled_from([*"ab\",;'\n\t|1.5 é", "\r\n"]), max_size=6).map("".join)
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
)
CELLS = st.one_of(WORDS, TEXTS, NUMBERS, st.sampled_from(GAPS))


@dataclass(frozen=True)
class Written:
    """A file and what its cells are."""

    content: bytes
    delimiter: str
    rows: list[list[str]]


@st.composite
def files(draw: st.DrawFn, cells: st.SearchStrategy[str] = CELLS) -> Written:
    """Draw a table of two columns or more, and how it is written."""
    width = draw(st.integers(2, 4))
    row = st.lists(cells, min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=25))
    delimiter = draw(st.sampled_from(",;\t|"))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow([f"c{at}" for at in range(width)])
    for one in rows:
        writer.writerow(one)
        buffer.write(end * draw(st.integers(0, 1)))  # a line without any character
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return Written(mark + buffer.getvalue().encode(), delimiter, rows)


@contextmanager
def kept(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder, patch.object(text_tables, "CHUNK_ROWS", 4):
        path = Path(folder) / "t.csv"
        path.write_bytes(content)
        yield path


def read(path: Path, written: Written, **options: object) -> RawData:
    given = {"path": path.name, "delimiter": written.delimiter, "target": -1, **options}
    return TABLES["csv"].read(Request("csv", given, "classes", (path.parent,), room(path.parent)))


def as_csv_reads(path: Path, delimiter: str) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        return [row for row in rows if row]


@FEW
@given(files())
def test_rows_are_those_of_csv_and_of_predict(written: Written) -> None:
    with kept(written.content) as path:
        wanted = as_csv_reads(path, written.delimiter)
        with opened_table(path, delimiter=written.delimiter, header=True) as table:
            ours = [(chunk.line(at, 0), row) for chunk in table.chunks()
                    for at, row in enumerate(chunk.rows)]  # fmt: skip
            assert list(table.names) == [name.strip() for name in wanted[0]]
        assert [row for _, row in ours] == wanted[1:]
        theirs = [(line, row) for line, row in predict.text_rows(path, written.delimiter) if row]
        assert theirs[1:] == ours
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        for line, row in ours:  # each begins in the line that is told
            first = lines.split("\n")[line - 1].strip(' "')
            assert first.startswith(row[0].replace("\r", "\n").split("\n")[0].strip(' "')[:2])


@FEW
@given(files())
def test_categories_are_the_files_cells(written: Written) -> None:
    columns = [f"c{at}" for at in range(len(written.rows[0]) - 1)]
    gaps = ["NA", "?"]
    with kept(written.content) as path:
        wanted = as_csv_reads(path, written.delimiter)[1:]
        there = [row for row in wanted if row[-1] not in ("", *gaps)]
        try:
            data = read(
                path, written, categorical=columns, columns=columns, missing="zero", gaps=gaps
            )
        except DataError as error:  # the target is not of classes: nothing silent
            if not any(word in str(error) for word in ("is the target", "no class")):
                raise
            return
    assert len(there) == len(wanted)
    for at in range(len(columns)):
        assert data.table is not None
        labels = data.table.labels[at] or ()
        for row, code in zip(wanted, data.rows.inputs[:, at], strict=True):
            found = None if math.isnan(code) else labels[int(code)]
            cell = row[at]
            same = found == cell or (found is not None and whole(found) == whole(cell) is not None)
            assert found is None if cell in ("", *gaps) else same
    assert data.classes is not None
    for row, target in zip(wanted, data.rows.targets, strict=True):
        label = data.classes[target]
        assert label == row[-1] or whole(label) == whole(row[-1]) is not None


PLAIN = st.one_of(NUMBERS, st.sampled_from(["", "NA", " 7", "+.5", "1e5"]))


@FEW
@given(files(PLAIN))
def test_numbers_are_those_of_python_of_arrow_and_of_predict(written: Written) -> None:
    columns = [f"c{at}" for at in range(len(written.rows[0]))]
    with kept(written.content) as path:
        wanted = as_csv_reads(path, written.delimiter)[1:]
        numbers = [[math.nan if cell in GAPS else float(cell) for cell in row] for row in wanted]
        try:
            request = {"path": path.name, "delimiter": written.delimiter, "target": 0}
            request |= {"missing": "mean", "columns": columns[1:]}
            given = Request("csv", request, "numbers", (path.parent,), room(path.parent))
            data = TABLES["csv"].read(given)
        except DataError as error:
            empty = any(math.isnan(row[0]) for row in numbers)
            if ("is the target" if empty else "not finite") not in str(error):
                raise
            return
        arrow = arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(delimiter=written.delimiter),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
        encoding = [{"kind": "number", "fill": 0.25}] * (len(columns) - 1)
        model = predict.Model(
            network=nn.Identity(), loss="mse", shape=(len(encoding),), mean=np.zeros(1),
            deviation=np.ones(1), classes=None, columns=columns[1:], encoding=encoding,
            layout={"delimiter": written.delimiter},
        )  # fmt: skip
        predicted = predict.encode(model.read(path), encoding)
    np.testing.assert_array_equal(data.rows.targets[:, 0], [row[0] for row in numbers])
    inputs = np.array([row[1:] for row in numbers])
    np.testing.assert_array_equal(data.rows.inputs, inputs)
    np.testing.assert_array_equal(predicted, np.where(np.isnan(inputs), 0.25, inputs))
    for at, name in enumerate(columns[1:]):
        cells = arrow.column(name).to_pylist()
        theirs = [math.nan if cell in GAPS else float(cell) for cell in cells]
        np.testing.assert_array_equal(theirs, inputs[:, at])


@FEW
@given(files(st.sampled_from(["1", "2.5", "x", 'a "b"', "c\nd"])), st.data())
def test_a_row_of_another_width_is_refused_by_all_three(
    written: Written, data: st.DataObject
) -> None:
    wide = data.draw(st.booleans())
    rows = [list(row) for row in written.rows]
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at] = [*rows[at], "9"] if wide else rows[at][:-1]
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=written.delimiter, lineterminator="\n")
    writer.writerows([[f"c{at}" for at in range(len(written.rows[0]))], *rows])
    inputs = [f"c{at}" for at in range(len(written.rows[0]) - 1)]
    odd = replace(written, content=buffer.getvalue().encode())
    with kept(odd.content) as path:
        with pytest.raises(DataError, match=r"line \d+ has \d+ cells?"):
            read(path, odd, missing="zero", categorical=inputs, columns=inputs)
        with (
            opened_table(path, delimiter=odd.delimiter, header=True) as table,
            pytest.raises(DataError, match=r"line \d+ has \d+ cells?"),
        ):
            list(table.chunks())
        model = predict.Model(
            network=nn.Identity(), loss="mse", shape=(1,), mean=np.zeros(1), deviation=np.ones(1),
            classes=None, columns=["c0"], encoding=[{"kind": "one_hot", "categories": [],
            "fill": None}], layout={"delimiter": odd.delimiter},
        )  # fmt: skip
        with pytest.raises(predict.RowsError, match=r"line \d+ has \d+ cells"):
            model.read(path)


@FEW
@given(files())
def test_an_upload_counts_the_rows_that_training_reads(written: Written) -> None:
    with kept(written.content) as path:
        try:
            found = inspect(path, max_bytes=1 << 20)
        except DataError:
            return  # split elsewhere, a row is of another width
        if found.delimiter == written.delimiter:
            assert found.rows == len(as_csv_reads(path, written.delimiter)) - 1


@FEW
@given(st.one_of(NUMBERS, WORDS, TEXTS), st.sampled_from(".,"))
def test_both_know_the_same_numbers(text: str, decimal: str) -> None:
    assert number(text, decimal) == predict.number(text, decimal)
    assert whole(text) == predict.whole(text)
