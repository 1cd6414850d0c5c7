"""What a study says of single columns: how they are scaled and encoded, against scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import preprocessing as sk

from tests.unit.training.builders import dataset, spec
from tests.unit.training.bundle.test_raw_files import test_part, trained
from tests.unit.training.data.test_datasets import load
from tuner_service.errors import DataError
from workers.training.bundle import predict
from workers.training.data import PreparedData

ROWS = 60
GENERATOR = np.random.default_rng(1)
AGE = GENERATOR.lognormal(3, 1, ROWS).round(3)
PAY = GENERATOR.normal(100, 20, ROWS).round(3)
SIZE = GENERATOR.choice(["small", "large", "medium"], ROWS)
TOWN = GENERATOR.choice(["a", "b", "b", "c"], ROWS)
KIND = np.where(AGE > 20, "old", "young")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    columns = {"age": AGE, "pay": PAY, "size": SIZE, "town": TOWN, "kind": KIND}
    pd.DataFrame(columns).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def described(**options: Any) -> dict[str, Any]:
    return dataset("csv", path="t.csv", target="kind", **options)


def prepared(folder: Path, **options: Any) -> PreparedData:
    return load(described(**options), folder, dtype=torch.float64)


SCALERS = {
    "standard": sk.StandardScaler(),
    "minmax": sk.MinMaxScaler(),
    "robust": sk.RobustScaler(),
    "none": sk.FunctionTransformer(),
}


@pytest.mark.parametrize("how", SCALERS)
@pytest.mark.parametrize("texts", [False, True])
def test_a_scale_is_scikit_learns_fitted_on_the_training_part(
    folder: Path, how: str, texts: bool
) -> None:
    columns = ["town", "age"] if texts else ["pay", "age"]
    at = 3 if texts else 1
    raw = prepared(folder, columns=columns, standardize=False)
    data = prepared(folder, columns=columns, scale={"age": how})
    scaler = SCALERS[how].fit(raw.train.inputs[:, at:].numpy())
    for part, plain in ((data.train, raw.train), (data.test, raw.test)):
        assert part is not None
        assert plain is not None
        expected = scaler.transform(plain.inputs[:, at:].numpy())
        np.testing.assert_allclose(part.inputs[:, at:].numpy(), expected, rtol=1e-12, atol=1e-12)
    other = prepared(folder, columns=columns)  # the other column is as without `scale`
    assert torch.equal(data.train.inputs[:, :at], other.train.inputs[:, :at])
    every = prepared(folder, columns=columns, scale=how)
    np.testing.assert_allclose(every.train.inputs[:, at], data.train.inputs[:, at])


def test_an_order_and_a_frequency(folder: Path) -> None:
    order = {"size": ["small", "medium", "large"]}
    data = prepared(
        folder, columns=["size", "town"], orders=order, encode={"town": "frequency"}, scale="none"
    )
    raw = prepared(folder, columns=["size", "town"], scale="none")  # one hot: large medium small
    size, town = raw.train.inputs[:, :3], raw.train.inputs[:, 3:]
    assert torch.equal(data.train.inputs[:, 0], size @ torch.tensor([2.0, 1.0, 0.0]).double())
    shares = town.mean(0)
    torch.testing.assert_close(data.train.inputs[:, 1], town @ shares)
    assert data.test is not None
    assert raw.test is not None
    torch.testing.assert_close(data.test.inputs[:, 1], raw.test.inputs[:, 3:] @ shares)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": {"wage": "robust"}}, "'wage' of `scale` is no input"),
        ({"scale": {"town": "robust"}}, "'town' of `scale` holds categories"),
        ({"encode": {"age": "frequency"}}, "'age' of `encode` must be an input of categories"),
        ({"orders": {"kind": ["a", "b"]}}, "'kind' of `orders` must be an input of categories"),
        ({"orders": {"size": ["small", "large"]}}, "holds 'medium', which `orders` does not name"),
    ],
)
def test_columns_that_are_not_such_are_refused(
    folder: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        prepared(folder, **options)


def test_the_bundle_treats_raw_rows_alike(folder: Path) -> None:
    data = described(
        orders={"size": ["small", "medium", "large"]}, encode={"town": "frequency"},
        scale={"age": "robust", "pay": "minmax", "town": "none"},
    )  # fmt: skip
    record, place = trained(folder, spec(dataset=data, epochs=3))
    model = predict.Model.load(place)
    predicted = model.predict(model.read(folder / "t.csv"))
    rows = test_part(data, KIND)
    assert record["test_accuracy"] == np.mean(predicted[rows] == KIND[rows])
    unknown = np.array([[20.0, 100.0, "small", "nowhere"]], dtype=object)
    assert np.isfinite(model.scores(unknown)).all()
