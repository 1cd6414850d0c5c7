"""Text and gaps of tables: what they become, what is refused, and that a model repeats it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.unit.training.builders import dataset
from tests.unit.training.data.test_datasets import load, parts
from tuner_service.errors import DataError
from workers.training.bundle import predict
from workers.training.data import PreparedData

ROWS = [
    f"{'' if i % 8 == 3 else i},{'' if i % 10 == 7 else ['red', 'green', 'blue'][i % 3]},{i % 4},"
    f"{'ab'[i % 2]}"
    for i in range(40)
]
TABLE = "size,colour,zone,kind\n" + "\n".join(ROWS) + "\n"


def table(folder: Path, text: str = TABLE, **options: Any) -> PreparedData:
    (folder / "t.csv").write_text(text)
    described = dataset(
        "csv", **{"path": "t.csv", "target": "kind", "standardize": False, **options}
    )
    return load(described, folder, dtype=torch.float64)


def test_text_becomes_a_feature_per_category(tmp_path: Path) -> None:
    data = table(tmp_path, missing="zero")
    assert data.shape == (5,)  # size, three colours, zone
    hot = torch.cat([part.inputs for part in parts(data)])[:, 1:4]
    assert set(hot.flatten().tolist()) == {0.0, 1.0}
    assert sorted(hot.sum(1).tolist()) == [0.0] * 4 + [1.0] * 36  # four gaps: no category
    assert data.preprocessing["columns"] == ["size", "colour", "zone"]
    assert data.preprocessing["encoding"][1] == {
        "kind": "one_hot", "categories": ["blue", "green", "red"], "fill": None,
    }  # fmt: skip


@pytest.mark.parametrize("constant", [0.1, 100_000.1])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_column_constant_in_training_stays_of_its_own_size(
    tmp_path: Path, constant: float, gaps: bool
) -> None:
    """The rounded mean of a constant is not the constant, and the difference no deviation."""
    rows = [f"{i},{'' if gaps and i % 3 else constant},{'ab'[i % 2]}\n" for i in range(40)]
    text = "size,flag,kind\n" + "".join(rows)
    data = table(tmp_path, text, missing="mean", standardize=True)
    assert data.preprocessing["mean"][1] == constant
    assert data.preprocessing["deviation"][1] == 1.0
    assert not data.train.inputs[:, 1].any()


def test_numbers_may_be_declared_categories(tmp_path: Path) -> None:
    data = table(tmp_path, missing="drop_rows", categorical=["zone"])
    assert data.preprocessing["encoding"][2]["categories"] == ["0", "1", "2", "3"]
    assert data.shape == (1 + 3 + 4,)


def test_categories_may_be_their_position(tmp_path: Path) -> None:
    data = table(tmp_path, missing="drop_rows", encode="ordinal", columns=["colour"])
    assert data.shape == (1,)
    assert set(data.train.inputs.flatten().tolist()) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize(("missing", "fill"), [("mean", np.mean), ("median", np.median)])
def test_gaps_are_filled_from_the_training_part(tmp_path: Path, missing: str, fill: Any) -> None:
    data = table(tmp_path, missing=missing, columns=["size"])
    sizes = data.train.inputs.flatten().tolist()
    filled = data.preprocessing["encoding"][0]["fill"]
    present = [size for size in sizes if size != filled]
    assert filled == pytest.approx(fill(present))
    assert len(present) < len(sizes)


def test_rows_with_gaps_are_left_out_when_asked(tmp_path: Path) -> None:
    data = table(tmp_path, missing="drop_rows")
    gaps = sum(i % 8 == 3 or i % 10 == 7 for i in range(40))
    assert sum(part.rows for part in parts(data)) == 40 - gaps


def test_only_what_is_no_category_is_standardised(tmp_path: Path) -> None:
    data = table(tmp_path, missing="mean", standardize=True)
    train = data.train.inputs
    assert set(train[:, 1:4].flatten().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(train[:, [0, 4]].mean(0), torch.zeros(2).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        ({}, TABLE, ["line 5", "'size'", "empty", "missing"]),
        ({"columns": ["colour"]}, TABLE, ["line 9", "'colour'", "empty"]),
        ({"missing": "mean"}, TABLE.replace("5,blue", "five,blue"), ["line 7", "'five'", "cat"]),
        ({"missing": "mean"}, TABLE.replace("5,blue", "inf,blue"), ["line 7", "not finite"]),
        ({"missing": "mean"}, TABLE.replace("9,red,1,b", "9,red,1,"), ["line 11", "drop_rows"]),
        ({"categorical": ["kind"]}, TABLE, ["'kind'", "no input column"]),
        ({"missing": "drop_rows"}, "size,kind\n1,\n,a\n", ["every row"]),
        ({"columns": ["colour"]}, "colour,kind\n" + "\n".join(f"c{i},{i % 2}" for i in range(4000)),
         ["'colour'", "2,400 different texts", "ordinal"]),
    ],
)  # fmt: skip
def test_what_cannot_be_encoded_is_refused(
    tmp_path: Path, options: dict[str, Any], text: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        table(tmp_path, text, **options)
    for word in words:
        assert word in str(error.value)


def test_lines_are_the_files_also_after_rows_were_dropped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 7, .*'five'"):
        table(tmp_path, TABLE.replace("5,blue", "five,blue"), missing="drop_rows")


def test_files_must_agree_on_what_a_column_is(tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text(
        TABLE.replace("red", "1").replace("green", "2").replace("blue", "3")
    )
    with pytest.raises(DataError, match="'colour' is text in one file and numbers in another"):
        table(tmp_path, path=["t.csv", "u.csv"], missing="zero")


def test_a_parquet_table_with_text_gaps_and_other_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "x": pd.array([1, None, 3, 4] * 10, dtype="Int64"),
            "flag": [True, False] * 20,
            "colour": pd.Categorical(["red", "green", None, "red"] * 10),
            "kind": ["a", "b"] * 20,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    described = dataset("parquet", path="t.parquet", target="kind", missing="median")
    data = load(described, tmp_path)
    assert data.shape == (4,)
    with pytest.raises(DataError, match=r"t\.parquet: row 2, column 'x' is empty"):
        load(dataset("parquet", path="t.parquet", target="kind"), tmp_path)
    frame.assign(day=pd.Timestamp("2026-01-01")).to_parquet(tmp_path / "t.parquet", index=False)
    with pytest.raises(DataError, match=r"column 'day' is of the type timestamp\[.*leave it out"):
        load(described, tmp_path)


@pytest.mark.parametrize("encode", ["one_hot", "ordinal"])
@pytest.mark.parametrize("missing", ["mean", "median", "zero"])
def test_a_model_prepares_rows_as_training_did(tmp_path: Path, encode: str, missing: str) -> None:
    data = table(
        tmp_path, standardize=True, missing=missing, encode=encode, categorical=["zone"]
    )  # fmt: skip
    prepared = data.preprocessing
    model = predict.Model(
        network=nn.Identity(), loss="mse", shape=data.shape, mean=np.array(prepared["mean"]),
        deviation=np.array(prepared["deviation"]), classes=None, columns=prepared["columns"],
        encoding=prepared["encoding"],
    )  # fmt: skip
    encoded = predict.encode(model.read(tmp_path / "t.csv"), prepared["encoding"])
    ours = {tuple(np.round(row, 9)) for row in (encoded - model.mean) / model.deviation}
    theirs = {tuple(np.round(row, 9)) for part in parts(data) for row in part.inputs.numpy()}
    assert ours == theirs
