"""The sources of data, each held to what all of them keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.unit.datasets.files import flowers, npz, zipped
from tests.unit.training.data.contract import (
    DatasetSourceContract,
    FilesContract,
    PathContract,
)
from tests.unit.training.data.test_datasets import write_idx
from tests.unit.training.rooms import room
from workers.training.data.sources import Request, Source
from workers.training.data.user_data import source_of
from workers.training.nets.losses import TargetKind

Ask = Callable[..., Request]

TABLE = pd.DataFrame({
    "x": np.arange(20.0), "y": np.arange(20) % 5, "label": ["a", "b"] * 10, "n": np.arange(20) / 3,
})  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def ask(tmp_path: Path, folder: Path) -> Ask:
    def ask(name: str, targets: TargetKind = "classes", **options: Any) -> Request:
        return Request(name, options, targets, (folder,), room(tmp_path))

    return ask


class TestBuiltIn(DatasetSourceContract):
    @pytest.fixture(params=["iris", "digits"])
    def asked(self, ask: Ask, request: pytest.FixtureRequest) -> Request:
        return ask(request.param)


class TestBuiltInNumbers(DatasetSourceContract):
    @pytest.fixture
    def asked(self, ask: Ask) -> Request:
        return ask("diabetes", "numbers")


class TestIdx(FilesContract):
    @pytest.fixture
    def asked(self, ask: Ask, folder: Path) -> Request:
        write_idx(folder / "mnist")
        return ask("mnist")


class TestCsv(PathContract):
    @pytest.fixture
    def asked(self, ask: Ask, folder: Path) -> Request:
        TABLE.to_csv(folder / "t.csv", index=False)
        return ask("csv", path="t.csv", target="label")


class TestParquetNumbers(PathContract):
    @pytest.fixture
    def asked(self, ask: Ask, folder: Path) -> Request:
        TABLE.drop(columns="label").to_parquet(folder / "t.parquet")
        return ask("parquet", "numbers", path="t.parquet", target="n")


class TestArrays(PathContract):
    @pytest.fixture(params=[(20, 3), (20, 5, 3), (20, 2, 4, 4)])
    def asked(self, ask: Ask, folder: Path, request: pytest.FixtureRequest) -> Request:
        inputs = np.random.default_rng(0).normal(size=request.param)
        npz(folder / "a.npz", inputs=inputs, targets=TABLE["label"].to_numpy(str))
        return ask("npz", path="a.npz")


class TestImages(PathContract):
    @pytest.fixture
    def asked(self, ask: Ask, folder: Path) -> Request:
        zipped(folder / "f.zip", flowers(20))
        return ask("images", path="f.zip")


class TestUserData(DatasetSourceContract):
    @pytest.fixture
    def asked(self, ask: Ask) -> Request:
        return ask("mine", rows=20)

    @pytest.fixture
    def source(self) -> Source:
        def load_data(rows: int) -> Any:
            # By NumPy's global generator, as a user's code may: it must be the same every time.
            return np.random.rand(rows, 3), np.arange(rows) % 2  # noqa: NPY002

        return source_of(load_data, "mine")
