"""Targets of regression: scaled for training, and in the file's units wherever they are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.builders import dataset, mlp, only, regression, run_all, start
from tests.unit.training.data.test_datasets import load
from tuner_service.errors import DataError
from workers.training.engine.engine import Engine, EngineSettings

X = np.random.default_rng(0).normal(size=300)
Y = 50_000.0 + 10_000.0 * np.sin(X)


def table(folder: Path, values: Any = Y) -> None:
    rows = "".join(f"{x},{y}\n" for x, y in zip(X.tolist(), values.tolist(), strict=True))
    (folder / "t.csv").write_text(f"x,y\n{rows}")


def described(**options: Any) -> dict[str, Any]:
    return dataset("csv", {"stratify": False}, path="t.csv", target="y", **options)


def trained(folder: Path, **options: Any) -> dict[str, Any]:
    one = regression(
        dataset=described(**options), network=mlp(hidden_units=32), metrics=("rmse", "r2"),
        objective=(("val_rmse", "minimize"),), epochs=40,
    )  # fmt: skip
    engine = Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))
    events = run_all(engine, [start(1, one, folder=folder)])
    return dict(only(events, 1, "finished").record)


@pytest.mark.parametrize("scale", ["standard", "log"])
def test_large_targets_are_learnt_and_told_in_their_units(tmp_path: Path, scale: str) -> None:
    table(tmp_path)
    plain, scaled = trained(tmp_path), trained(tmp_path, target_scale=scale)
    assert scaled["test_rmse"] < 0.2 * Y.std() < Y.std() < plain["test_rmse"]
    assert scaled["test_r2"] > 0.95 > 0.0 > plain["test_r2"]


def test_the_scale_is_the_training_parts(tmp_path: Path) -> None:
    table(tmp_path)
    data = load(
        described(target_scale="standard"), tmp_path, targets="numbers", dtype=torch.float64
    )
    raw = load(described(), tmp_path, targets="numbers", dtype=torch.float64)
    train = raw.train.targets
    assert data.train.targets.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert data.train.targets.std(correction=0).item() == pytest.approx(1.0)
    assert data.preprocessing["target"] == {
        "mean": [pytest.approx(train.mean().item())],
        "deviation": [pytest.approx(train.std(correction=0).item())],
        "log": False,
    }
    for ours, before in ((data.validation, raw.validation), (data.test, raw.test)):
        assert ours is not None
        assert before is not None
        assert ours.target_scale is not None
        torch.testing.assert_close(ours.target_scale.restored(ours.targets), before.targets)


def test_a_constant_target_stays_finite(tmp_path: Path) -> None:
    table(tmp_path, np.full(300, 0.1))
    data = load(described(target_scale="standard"), tmp_path, targets="numbers")
    assert (data.train.targets == 0).all()


def test_a_logarithm_needs_numbers_above_zero(tmp_path: Path) -> None:
    table(tmp_path, np.where(np.arange(300) == 6, 0.0, Y))
    with pytest.raises(DataError, match=r"row 7 is 0\.0; target_scale log needs numbers above 0"):
        load(described(target_scale="log"), tmp_path, targets="numbers")
