"""Tables as people have them: kinds of columns, spelling, widths, gaps, types; and what is said."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.unit.training.rooms import room
from tuner_service.datasets import columns, text_tables
from tuner_service.datasets.columns import GAPS
from tuner_service.errors import DataError
from workers.training.data.sources import RawData, Request
from workers.training.data.tables import TABLES
from workers.training.nets.losses import TargetKind

IDS = ("123456789012345671", "123456789012345672", "123456789012345673", "123456789012345674")


def read(
    folder: Path, text: str | None = None, targets: TargetKind = "classes", **options: Any
) -> RawData:
    if text is not None:
        (folder / "t.csv").write_text(text, encoding="utf-8", newline="")
    name = "parquet" if text is None else "csv"
    given = {"path": f"t.{name}", "target": "kind", **options}
    return TABLES[name].read(Request(name, given, targets, (folder,), room(folder)))


def refused(folder: Path, text: str | None = None, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(folder, text, **options)
    return str(error.value)


def lines(head: str, rows: Any) -> str:
    return "\n".join([head, *rows]) + "\n"


# One kind per column -----------------------------------------------------------------------


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tables, "CHUNK_ROWS", 7)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["AB" if i == 5 else "" if i == 50 else str(1 + i % 3) for i in range(60)],
         ("1", "2", "3", "AB")),
        (["A1" if i == 5 else f"{1 + i % 3:02}" for i in range(60)], ("01", "02", "03", "A1")),
        (["maybe" if i == 50 else "true" if i % 2 else "false" for i in range(60)],
         ("false", "maybe", "true")),
        (["true" if i % 2 else "false" for i in range(60)], ("false", "true")),
        (["1" if i < 30 else "1.0" if i % 2 else "2" for i in range(60)], ("1", "2")),
        (["1" if i < 30 else "01" for i in range(60)], ("01", "1")),
        (["1.1" if i < 30 else "1.10" for i in range(60)], ("1.1", "1.10")),
        ([IDS[i % 4] if i != 30 else "" for i in range(60)], IDS),
        ([str(2**63 + i % 4) for i in range(60)], tuple(str(2**63 + i) for i in range(4))),
        (["None" if i % 2 else "NA" if i == 30 else "x" for i in range(60)], ("x",)),
    ],
)  # fmt: skip
def test_a_category_is_the_files_text_wherever_it_stands(
    tmp_path: Path, cells: list[str], labels: tuple[str, ...]
) -> None:
    text = lines("c,kind", (f"{cell},{'ab'[i % 2]}" for i, cell in enumerate(cells)))
    data = read(tmp_path, text, categorical=["c"], missing="zero")
    assert data.table is not None
    assert data.table.labels == (labels,)
    assert {
        data.table.labels[0][int(code)] if not math.isnan(code) else None  # type: ignore[index]
        for code in data.rows.inputs[:, 0]
    } == {*labels, *({None} if GAPS and {*cells} & {*GAPS} else ())}


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["true", "false", "maybe"], ("false", "maybe", "true")),
        (["true", "false"], ("false", "true")),
        (["01", "02", "A1"], ("01", "02", "A1")),
        (["10", "9", "-3"], ("-3", "9", "10")),
        (["1", "1.0", "2"], ("1", "2")),
        (["x", "3.10", "3.1"], ("3.1", "3.10", "x")),
        (IDS, IDS),
    ],
)
def test_a_class_keeps_the_files_spelling(
    tmp_path: Path, cells: list[str], classes: tuple[str, ...]
) -> None:
    rows = [cells[i % len(cells)] for i in range(40)]
    data = read(tmp_path, lines("x,kind", (f"{i},{cell}" for i, cell in enumerate(rows))))
    assert data.classes == classes
    found = [classes[number] for number in data.rows.targets]
    assert [cell.replace("1.0", "1") if "1" in classes else cell for cell in rows] == found


def test_what_an_undeclared_column_holds_is_decided_over_all_rows(tmp_path: Path) -> None:
    text = lines("t,n,s,kind", (f"true,{i},w{i % 3},{'ab'[i % 2]}" for i in range(30)))
    data = read(tmp_path, text)
    assert data.table is not None
    assert data.table.labels == (None, None, ("w0", "w1", "w2"))
    assert data.rows.inputs[:, 0].tolist() == [1.0] * 30


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("odd", "at"), [("oops", 25), ("1_000", 3), ("0x1F", 25), ("١", 25)])
def test_a_text_among_numbers_is_refused_with_its_line(tmp_path: Path, odd: str, at: int) -> None:
    text = lines("x,kind", (f"{odd if i == at else i},{'ab'[i % 2]}" for i in range(30)))
    assert f"t.csv: line {at + 2}, column 'x' is the text {odd!r}" in refused(tmp_path, text)


@pytest.mark.usefixtures("_small_chunks")
def test_a_number_among_texts_names_the_first_text(tmp_path: Path) -> None:
    text = lines("x,kind", (f"{i if i > 20 else 'w'},{'ab'[i % 2]}" for i in range(30)))
    assert "t.csv: line 2, column 'x' is the text 'w'" in refused(tmp_path, text)


def test_numbers_are_those_that_python_reads(tmp_path: Path) -> None:
    cells = ["0.1", "1e-300", " 7 ", "-.5", "1.", "+3", "123456789.123456789", "9007199254740993"]
    text = lines("x,kind", (f"{cell},{'ab'[i % 2]}" for i, cell in enumerate(cells)))
    data = read(tmp_path, text)
    assert data.rows.inputs[:, 0].tolist() == [float(cell) for cell in cells]
    assert "line 9, column 'x' is beyond 2**53" in data.warnings[0]


# Rows and names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y,x,y\n1,2,1\n", ["the first line names the column 'y' twice (1 and 3)"]),
        ("a ,a,kind\n1,2,a\n", ["the column 'a' twice (1 and 2)"]),
        ('a,b,kind\n"r1",1,2,x\n', ["line 2 has 4 cells", "the first line has 3"]),
        ("a,b,kind\n1,2,x,\n", ["line 2 has 4 cells"]),
        ("a,b,kind\n1,2,x\n\n1,2\n", ["line 4 has 2 cells"]),
        ('a,b,kind\n1,2,x\n1,"2,x\n3,4,y\n', ["a quote that is never closed"]),
        ('a,kind\n"two\nlines",x\nNA,x\n', ["line 4, column 'a' holds 'NA'", "`gaps`"]),
        ('a,kind\n1,x\n"2",x\noops,"y\ny"\n', ["line 4, column 'a'", "'oops'"]),
        ('a,b,kind\n1,1,x\n"2\n",oops,y\n3,4,x\n', ["line 4, column 'b'", "'oops'"]),
    ],
)
def test_rows_are_as_wide_as_the_header(tmp_path: Path, text: str, words: list[str]) -> None:
    said = refused(tmp_path, text, target=-1)
    for word in words:
        assert word in said


def test_a_cell_after_a_quoted_break_is_named_with_the_line_it_stands_in(tmp_path: Path) -> None:
    text = 'a,b,kind\n"one\ntwo",1,x\n"three\nfour",oops,y\n'
    assert "line 5, column 'b'" in refused(tmp_path, text, columns=["b"])


def test_a_column_without_a_name_is_told_by_its_position(tmp_path: Path) -> None:
    said = refused(tmp_path, "1,2,a\n3,oops,b\n", header=False, target=2)
    assert "t.csv: line 2, column 1 is the text 'oops'" in said


def test_lines_without_a_character_are_no_rows(tmp_path: Path) -> None:
    data = read(tmp_path, "\n\nx,kind\r\n1,a\r\n\r\n2,b\r\n3,a\r\n\r\n\r\n")
    assert data.rows.inputs[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_files_are_joined_by_the_names_of_their_columns(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text("kind,y,x\na,5,6\n")
    data = read(tmp_path, "x,y,kind\n1,2,a\n3,4,b\n", path=["t.csv", "u.csv"])
    assert data.rows.inputs.tolist() == [[1, 2], [3, 4], [6, 5]]
    (tmp_path / "u.csv").write_text("kind,y,z\na,5,6\n")
    assert "u.csv: it has no column 'x'" in refused(
        tmp_path, "x,y,kind\n1,2,a\n3,4,b\n", path=["t.csv", "u.csv"]
    )


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
def test_other_encodings_are_named(tmp_path: Path, encoding: str, name: str) -> None:
    (tmp_path / "t.csv").write_bytes("x,kind\n1,a\n2,b\n".encode(encoding))
    given = {"path": "t.csv", "target": "kind"}
    request = Request("csv", given, "classes", (tmp_path,), room(tmp_path))
    with pytest.raises(DataError, match=f"text in {name}; save it in UTF-8"):
        TABLES["csv"].read(request)


# Gaps, and numbers written as text ---------------------------------------------------------


def test_the_words_for_a_gap_are_the_studys(tmp_path: Path) -> None:
    rows = [f"{['CH', 'NA', '-', ''][i % 4]},{'ab'[i % 2]}" for i in range(40)]
    data = read(tmp_path, lines("country,kind", rows), gaps=["-"], missing="zero")
    assert data.table is not None
    assert data.table.labels == (("CH", "NA"),)
    assert np.isnan(data.rows.inputs).sum() == 20
    said = refused(tmp_path, lines("country,kind", rows[1:]))
    assert "line 2, column 'country' holds 'NA', which is read as empty" in said


def test_a_number_that_stands_for_a_gap_is_one(tmp_path: Path) -> None:
    text = lines("a,kind", [f"{-999 if at % 3 == 0 else at},{'xy'[at % 2]}" for at in range(20)])
    inputs = read(tmp_path, text, gaps=["-999"], missing="drop_rows").rows.inputs
    assert inputs[:, 0].tolist() == [at for at in range(20) if at % 3]
    assert "holds '-999', which is read as empty" in refused(tmp_path, text, gaps=["-999"])


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    kinds = ["crack", "None", "dent"]
    text = lines("x,kind", (f"{'' if i == 3 else i},{kinds[i % 3]}" for i in range(30)))
    data = read(tmp_path, text, missing="drop_rows")
    assert data.classes == ("crack", "dent")
    assert "left out 11 of 30 rows" in data.warnings[0]
    assert "'None' in 10" in data.warnings[0]
    assert read(tmp_path, text, missing="drop_rows", gaps=[]).classes == ("None", "crack", "dent")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{:.2f}", None),
        ("{0:.2f} kg", "different texts"),
        ("{}%", "percent sign"),
        ("${},005", "currency"),
        ("{},005", "thousands"),
        ("2024-01-{:02}", "dates"),
        ("{:02}.01.2024", "dates"),
        ("{},14", "decimal comma; set decimal to ','"),
        ("0,{:03}", "decimal comma; set decimal to ','"),
    ],
)
def test_numbers_written_as_text_do_not_become_categories(
    tmp_path: Path, form: str, words: str | None
) -> None:
    text = lines("x;kind", (f"{form.format(i)};{'ab'[i % 2]}" for i in range(1, 29)))
    try:
        said = " ".join(read(tmp_path, text, delimiter=";").warnings)
    except DataError as error:
        said = str(error)
        first = form.format(1)
        assert "'x'" in said
        assert first in said
    assert (words in said) if words else not said


def test_a_column_that_is_declared_is_taken_at_its_word(tmp_path: Path) -> None:
    text = lines("x,kind", (f"{i}%,{'ab'[i % 2]}" for i in range(30)))
    data = read(tmp_path, text, categorical=["x"])
    assert data.table is not None
    assert len(data.table.labels[0] or ()) == 30
    assert not data.warnings


def test_texts_without_end_are_refused_before_they_take_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MOST_TEXTS", 100)
    text = lines("x,kind", (f"w{i},{'ab'[i % 2]}" for i in range(5000)))
    assert "column 'x' has more than 100 different texts" in refused(tmp_path, text)


def test_a_decimal_comma(tmp_path: Path) -> None:
    text = lines("x;y;kind", (f"{i},5;1,{i};{'ab'[i % 2]}" for i in range(10)))
    data = read(tmp_path, text, delimiter=";", decimal=",")
    assert data.rows.inputs.tolist() == [[i + 0.5, 1 + i / 10] for i in range(10)]
    said = refused(tmp_path, text.replace("3,5", "3.5"), delimiter=";", decimal=",")
    assert "line 5, column 'x' is the text '3.5'" in said


# Parquet -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([[1.0, 2.0]] * 4, "list<double>;"),
        ([{"u": 1}] * 4, "struct<"),
        (pa.array([1, 2, 3, 4], pa.date32()), "date32"),
        (pa.array([1, 2, 3, 4], pa.time32("s")), "time32"),
        (pa.array([1, 2, 3, 4], pa.timestamp("s")), "timestamp"),
        (pa.array([1, 2, 3, 4], pa.duration("s")), "duration"),
        ([b"a", b"b", b"c", b"d"], "binary"),
    ],
)
def test_columns_that_are_no_data_are_refused_by_name(
    tmp_path: Path, values: Any, name: str
) -> None:
    table = pa.table({"x": [1, 2, 3, 4], "kind": list("abab"), "n": values})
    parquet.write_table(table, tmp_path / "t.parquet")
    said = refused(tmp_path)
    assert f"t.parquet: column 'n' is of the type {name}" in said
    assert "leave it out of `columns`" in said
    assert read(tmp_path, columns=["x"]).rows.inputs[:, 0].tolist() == [1, 2, 3, 4]


def test_parquets_own_types_are_taken_as_they_are(tmp_path: Path) -> None:
    columns = {
        "float": pa.array([0.5, None, math.nan, 2.0]),
        "int": pa.array([1, None, 2**40, 4]),
        "big": pa.array([2**63, 2**63 + 1, None, 0], pa.uint64()),
        "flag": pa.array([True, False, None, True]),
        "digits": pa.array(["1", "02", None, "true"]),
        "cat": pa.array(["u", "v", "u", None]).dictionary_encode(),
        "none": pa.nulls(4),
        "kind": pa.array(["a", "b", "a", "b"], pa.large_string()),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = read(tmp_path, missing="zero", categorical=["big"])
    assert data.table is not None
    assert data.table.labels == (
        None, None, ("0", str(2**63), str(2**63 + 1)), None, ("02", "1", "true"), ("u", "v"), None,
    )  # fmt: skip
    nan = math.nan
    np.testing.assert_array_equal(
        data.rows.inputs,
        [
            [0.5, 1, 1, 1, 1, 0, nan],
            [nan, nan, 2, 0, 0, 1, nan],
            [nan, 2**40, nan, nan, nan, 0, nan],
            [2.0, 4, 0, 1, 2, nan, nan],
        ],
    )


@pytest.mark.parametrize("index", [[f"id{i}" for i in range(40)], range(100, 140), None])
def test_an_index_that_pandas_wrote_is_no_column(tmp_path: Path, index: Any) -> None:
    frame = pd.DataFrame(
        {"x": range(40), "kind": list("ab" * 20), "n": [None if i == 3 else i for i in range(40)]},
        index=index,
    )
    frame.to_parquet(tmp_path / "t.parquet", index=True)
    assert "t.parquet: row 4, column 'n' is empty" in refused(tmp_path)
    assert read(tmp_path, missing="mean").columns == ("x", "n")
