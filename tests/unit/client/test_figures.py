"""Figures as plain data, and the display in a notebook."""

from typing import Any

import pytest

from tests.unit.client.fake_service import FakeService, trial
from tuner_service.client import figures

COLUMNS: dict[str, Any] = {
    "metrics": ["loss"],
    "directions": ["minimize"],
    "number": [0, 1, 2, 3, 4],
    "state": ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE"],
    "values": [[0.5, 0.9, 0.7, None, 0.2]],
    "parameters": {"lr": [1.0, 2.0, 3.0, 4.0, 5.0], "momentum": [0.1, None, None, 0.2, 0.3]},
}


def test_the_best_so_far_goes_by_the_direction() -> None:
    complete, pruned, best = figures.history(COLUMNS)["data"]
    assert (complete["x"], complete["y"]) == ([0, 2, 4], [0.5, 0.7, 0.2])
    assert (pruned["x"], pruned["y"]) == ([1], [0.9])
    assert (best["x"], best["y"]) == ([0, 2, 4], [0.5, 0.5, 0.2])


def test_a_parameter_that_is_not_there_is_on_an_axis_of_its_own_word() -> None:
    lr, momentum, loss = figures.parallel(COLUMNS)["data"][0]["dimensions"]
    assert lr["values"] == [1.0, 3.0, 5.0]
    assert momentum["ticktext"] == ["0.1", "0.3", "n/a"]
    assert momentum["values"] == [0, 2, 1]
    assert loss["values"] == [0.5, 0.7, 0.2]


def test_curves_end_with_the_pruners_threshold() -> None:
    curve = {"number": 3, "state": "PRUNED", "steps": [1, 2], "values": [0.1, None]}
    threshold = {"pruner": "median", "trials": 5, "steps": [1], "values": [0.4]}
    found = {"metric": "loss", "curves": [curve], "threshold": threshold}
    line, bound = figures.curves(found)["data"]
    assert (line["name"], line["y"]) == ("#3", [0.1, None])
    assert (bound["name"], bound["y"]) == ("median pruner", [0.4])
    assert len(figures.curves({**found, "threshold": None})["data"]) == 1


def test_plotly_takes_all_of_them() -> None:
    pytest.importorskip("plotly")
    for data in (
        figures.history(COLUMNS),
        figures.parallel(COLUMNS),
        figures.importances({"lr": 0.7, "momentum": 0.3}),
    ):
        assert figures.figure(data).data


def test_a_notebook_shows_names_as_text(service: FakeService) -> None:
    service.study.trials = [trial(0, value=0.5)]
    service.study.reason = "<script>alert(1)</script>"
    shown = service.client().study("digits")._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "0.5 (trial 0)" in shown
    assert "learning_rate" in shown


@pytest.fixture
def service() -> FakeService:
    return FakeService()
