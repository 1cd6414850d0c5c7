"""Points all over a search space."""

from typing import Any

import pytest

from tuner_service.definition import parse_definition, space_of
from tuner_service.definition.grid import grid_points
from tuner_service.search.samplers.uniform import first_point, spread_points


def definition(**changes: Any) -> Any:
    return parse_definition({
        "name": "one",
        "dataset": {"name": "iris"},
        "network": {"type": "mlp"},
        "objective": {"metric": "val_accuracy"},
        "parameters": {
            "batch_size": {"type": "categorical", "choices": [16, 32, 64, 128]},
            "hidden_units": {"type": "int", "low": 1, "high": 16},
        },
        "sampler": {"type": "grid"},
        **changes,
    })  # fmt: skip


def test_points_of_a_grid_are_its_own_and_vary_every_parameter() -> None:
    points = spread_points(definition(), 16)
    assert len(points) == 16
    assert all(point in list(grid_points(space_of(definition()))) for point in points)
    assert {point["batch_size"] for point in points} == {16, 32, 64, 128}
    assert len({point["hidden_units"] for point in points}) > 4


@pytest.mark.parametrize("sampler", ["grid", "random", "qmc", "tpe"])
def test_points_differ_and_a_small_space_has_few(sampler: str) -> None:
    budget = {} if sampler == "grid" else {"budget": {"trials": 3}}
    small = {"batch_size": {"type": "categorical", "choices": [16, 32]}}
    one = definition(sampler={"type": sampler}, parameters=small, **budget)
    assert sorted(point["batch_size"] for point in spread_points(one, 16)) == [16, 32]
    assert first_point(one)["batch_size"] in (16, 32)
