"""Metrics that are not defined on a part of the data: no number, never zero."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.builders import dataset, of, only, run_all, spec, start
from tuner_service.definition.trial_spec import TrialSpec
from workers.training.engine.engine import Engine, EngineSettings

ROWS = 60


def engine(folder: Path) -> Engine:
    return Engine("cpu", settings=EngineSettings(data_dirs=(folder,), threads=1))


def rare(folder: Path, split: dict[str, Any], yes: int = 3, **changes: Any) -> TrialSpec:
    """Return a trial on a table with few rows of its second class, the first ones."""
    text = "".join(f"{i},{'yes' if i < yes else 'no'}\n" for i in range(ROWS))
    (folder / "t.csv").write_text(f"x,kind\n{text}")
    data = dataset("csv", {"stratify": False, **split}, path="t.csv", target="kind")
    return spec(dataset=data, **{"metrics": ("accuracy", "auroc"), **changes})


@pytest.mark.parametrize("split", [{"validation": 0.1, "test": 0.1}, {"folds": 5, "test": 0.0}])
def test_an_objective_that_is_not_defined_refuses_the_data(
    tmp_path: Path, split: dict[str, Any]
) -> None:
    trial = rare(tmp_path, split, yes=1, objective=(("val_auroc", "maximize"),))
    events = run_all(engine(tmp_path), [start(1, trial, folder=tmp_path)])
    failure = only(events, 1, "failed").failure
    assert failure.kind == "data"
    assert "rows of one class only ('no'); val_auroc is not defined" in failure.message


def test_a_metric_that_is_not_defined_is_null(tmp_path: Path) -> None:
    trial = rare(tmp_path, {"validation": 0.1, "test": 0.1}, yes=1)
    events = run_all(engine(tmp_path), [start(1, trial, folder=tmp_path)])
    assert [one.record["val_auroc"] for one in of(events, 1, "reported")] == [None] * 3
    assert only(events, 1, "finished").record["test_auroc"] is None


def test_a_mean_over_folds_is_that_of_the_folds_that_have_the_metric(tmp_path: Path) -> None:
    split = {"folds": 5, "test": 0.0}
    defined = []
    for fold in range(5):
        one = rare(tmp_path, {**split, "fold": fold}, epochs=1)
        events = run_all(engine(tmp_path), [start(1, one, folder=tmp_path)])
        defined.append(only(events, 1, "reported").record["val_auroc"])
    assert None in defined
    there = [value for value in defined if value is not None]
    joined = run_all(
        engine(tmp_path),
        [start(1, rare(tmp_path, split, epochs=1), folder=tmp_path)],
    )
    record = only(joined, 1, "reported").record
    assert record["val_auroc"] == pytest.approx(sum(there) / len(there))


def test_what_is_doubtful_in_the_data_stands_in_the_record(tmp_path: Path) -> None:
    text = "".join(f"{'' if i < 7 else i},{'ab'[i % 2]}\n" for i in range(ROWS))
    (tmp_path / "t.csv").write_text(f"x,kind\n{text}")
    trial = spec(dataset=dataset("csv", path="t.csv", target="kind", missing="drop_rows"))
    events = run_all(engine(tmp_path), [start(1, trial, folder=tmp_path)])
    (warning,) = only(events, 1, "finished").record["warnings"]
    assert "left out 7 of 60 rows" in warning
