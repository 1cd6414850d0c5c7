"""`predict.py` on files as they come: gaps, categories, widths, headers, and what is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES
from safetensors.torch import save_file
from torch import nn

from workers.training.bundle import predict
from workers.training.trials.best_models import scripts

ENCODING: list[dict[str, Any]] = [
    {"kind": "one_hot", "categories": ["Basel", "Bern"], "fill": "Bern"},
    {"kind": "one_hot", "categories": ["1", "2"], "fill": "1"},
    {"kind": "number", "fill": 50.0},
]
COLUMNS = ["city", "zone", "area"]


def model(**changes: Any) -> predict.Model:
    told: dict[str, Any] = {
        "network": nn.Linear(5, 1), "loss": "mse", "shape": (5,), "mean": np.zeros(5),
        "deviation": np.ones(5), "classes": None, "columns": COLUMNS, "encoding": ENCODING,
    }  # fmt: skip
    return predict.Model(**told | changes)


def plain(*shape: int) -> predict.Model:
    size = int(np.prod(shape))
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, 1))
    return model(network=network, shape=shape, mean=0.0, deviation=1.0, columns=None, encoding=None)


def encoded(path: Path, text: str) -> list[list[float]]:
    path.write_text(text, encoding="utf-8")
    rows: list[list[float]] = predict.encode(model().read(path), ENCODING).tolist()
    return rows


def test_the_texts_that_are_empty_are_those_of_training() -> None:
    assert set(STR_NA_VALUES) == predict.GAPS


@pytest.mark.parametrize("gap", ["", "NA", "NaN", "null", " NA"])
def test_a_gap_in_a_csv_file_is_filled_in_every_column(tmp_path: Path, gap: str) -> None:
    rows = encoded(tmp_path / "r.csv", f"city,zone,area\n{gap},{gap},{gap}\nBern,1,50\n")
    assert rows[0] == rows[1] == [0.0, 1.0, 1.0, 0.0, 50.0]


def test_a_number_is_the_same_category_however_it_is_written(tmp_path: Path) -> None:
    first, *rest = encoded(tmp_path / "r.csv", "Bern,2,7\nBern,2.0,7\nBern,2.00,7\n")
    assert all(row == first for row in rest)
    for other in ("2.5", "02"):  # a number with leading zeros is a text of its own
        assert encoded(tmp_path / "r.csv", f"Bern,{other},7\n")[0][2:4] == [0.0, 0.0]
    halves = [{"kind": "one_hot", "categories": ["1.5", "2.0", "03"], "fill": None}]
    cells = np.array([["2"], [2], [1.5], [np.float32(2)], ["3"], ["03"]], dtype=object)
    places = [
        row.index(1.0) if 1.0 in row else -1 for row in predict.encode(cells, halves).tolist()
    ]
    assert places == [1, 1, 0, 1, -1, 2]


def test_truth_values_are_numbers_and_categories_as_in_training() -> None:
    columns = [
        {"kind": "number", "fill": None},
        {"kind": "one_hot", "categories": ["False", "True"], "fill": None},
    ]
    rows = predict.encode(np.array([["true", "TRUE"], ["False", "False"]], dtype=object), columns)
    # Numbers whichever way they are written; categories as they are spelled.
    assert rows.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_a_header_may_have_a_mark_of_byte_order(tmp_path: Path) -> None:
    assert len(encoded(tmp_path / "r.csv", "\ufeffarea,city,zone\n7,Bern,2\n")) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("Bern,2\nBern,2\nBern,2\n", ["line 1", "2 cells", "3 belong"]),
        ("Bern,2,7,Bern,2,7\n", ["line 1", "6 cells", "3 belong"]),
        ("city,zone,area,x\nBern,2,7,1\nBern,2\n", ["line 3", "2 cells", "4 belong"]),
        ("city,zone,x\nBern,2,7\n", ["no column 'area'", "city, zone, x"]),
        ("city,zone,area\nBern,2,7\n\nBern,2,seven\n", ["line 4", "'area'", "'seven'"]),
        ("Bern,2,inf\n", ["line 1", "'area'", "not finite"]),
    ],
)
def test_a_file_of_other_rows_is_refused_with_its_place(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(predict.RowsError) as error:
        model().read(tmp_path / "r.csv")
    for word in ["r.csv", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
def test_cells_are_split_as_pandas_splits_them(tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "r.csv"
    file.write_text("".join(f"{delimiter.join(row)}\n" for row in ("cab", ["1", " 3", '"2"'])))
    layout = {"delimiter": delimiter, "header": True, "width": 3}
    own = [{"kind": "number", "fill": None}] * 3
    read = model(columns=["a", "b", "c"], encoding=own, layout=layout).read(file)
    trained = pd.read_csv(file, sep=delimiter, skipinitialspace=True)[["a", "b", "c"]]
    assert predict.encode(read, own).tolist() == trained.to_numpy().tolist()


def test_a_line_that_is_split_elsewhere_says_where_it_was_split(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("1,2\n")
    headless = plain(2), {"delimiter": ";", "header": False, "width": 3}
    with pytest.raises(predict.RowsError, match=r"1 cells \(split at ';'\) where 2 belong"):
        replace(headless[0], layout=headless[1]).read(tmp_path / "r.csv")


def test_a_gap_that_nothing_fills_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("1,2\n3,NA\n")
    with pytest.raises(predict.RowsError, match="line 2, column '1' is empty"):
        plain(2).read(tmp_path / "r.csv")
    with pytest.raises(predict.RowsError, match="not finite"):
        plain(2).predict(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize(
    ("shape", "given", "right"),
    [
        ((2, 3), (4, 2, 3), True),
        ((2, 3), (4, 6), True),
        ((1, 2, 3), (4, 2, 3), True),
        ((2, 3), (0,), True),
        ((2, 3), (4, 3, 2), False),
        ((2, 3), (4, 12), False),
        ((3,), (2, 6), False),
        ((3,), (6,), False),
    ],
)
def test_rows_are_of_the_models_shape_or_flat(
    shape: tuple[int, ...], given: tuple[int, ...], right: bool
) -> None:
    rows = np.zeros(given)
    if right:
        assert len(plain(*shape).predict(rows)) == len(rows)
        return
    with pytest.raises(predict.RowsError, match="rows must be"):
        plain(*shape).predict(rows)


@pytest.mark.parametrize("row", [["Bern", "2", 7, "Bern", "2", 7], ["Bern", "2"], "Bern"])
def test_rows_of_a_table_have_its_columns(row: Any) -> None:
    with pytest.raises(predict.RowsError, match=r"rows must be \[n, 3\]"):
        model().predict(np.array([row], dtype=object))


def test_the_command_says_what_is_wrong_and_bears_a_closed_pipe(tmp_path: Path) -> None:
    (tmp_path / "predict.py").write_text(scripts()["predict.py"])
    (tmp_path / "network.py").write_text(
        "from torch import nn\ndef build(): return nn.Linear(2, 1)"
    )
    told = {
        "network": {"type": "own"},
        "build": {},
        "loss": "mse",
        "input_shape": [2],
        "outputs": 1,
    }
    prepared = {"mean": 0.0, "deviation": 1.0, "classes": None, "columns": None}
    (tmp_path / "model.json").write_text(json.dumps(told))
    (tmp_path / "preprocessing.json").write_text(json.dumps(prepared))
    save_file(dict(nn.Linear(2, 1).state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "bad.csv").write_text("1,x\n")
    np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
    np.save(tmp_path / "many.npy", np.zeros((50_000, 2)))
    script = (
        "import runpy, sys\n"
        "for name in ('none.csv', 'bad.csv', 'wide.npy'):\n"
        "    sys.argv = ['predict.py', name]\n"
        "    try: runpy.run_path('predict.py', run_name='__main__')\n"
        "    except SystemExit as end: sys.stderr.write(f'{end.code}\\n')\n"
        "sys.argv = ['predict.py', 'many.npy']\n"
        "runpy.run_path('predict.py', run_name='__main__')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert said == [
        "predict.py: none.csv: No such file or directory", "2",
        "predict.py: bad.csv: line 1, column '1' is 'x' where a number belongs", "2",
        "predict.py: wide.npy: rows must be [n, 2], but got [2, 3]", "2",
    ]  # fmt: skip
