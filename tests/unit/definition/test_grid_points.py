"""The grid's points: each once, with just what applies, in a fixed order."""

from hypothesis import given, settings

from tests.unit.definition.spaces import spaces
from tests.unit.search.builders import choice, floats, space, study
from tuner_service.definition import space_of
from tuner_service.definition.grid import grid_points, grid_values
from tuner_service.definition.space import Space


@settings(max_examples=100, deadline=None)
@given(spaces())
def test_points_differ_and_hold_just_what_applies(ours: Space) -> None:
    seen = set()
    for point in grid_points(ours):
        seen.add(tuple((name, type(value), value) for name, value in point.items()))
        assert point.keys() == ours.active(point)
        for name, parameter in ours.parameters:
            assert name not in point or point[name] in grid_values(parameter)
    assert len(seen) == sum(1 for _ in grid_points(ours))


def test_the_last_parameter_changes_fastest() -> None:
    ours = space(
        optimizer=choice("sgd", "adam"),
        momentum=choice(0.5, 0.9, when={"optimizer": ("sgd",)}),
        rate=floats(1, 3, steps=2),
    )
    assert [tuple(point.values()) for point in grid_points(ours)] == [
        ("sgd", 0.5, 1.0),
        ("sgd", 0.5, 3.0),
        ("sgd", 0.9, 1.0),
        ("sgd", 0.9, 3.0),
        ("adam", 1.0),
        ("adam", 3.0),
    ]


def test_a_definitions_grid() -> None:
    ours = study(
        parameters={"hidden_units": {"type": "int", "low": 8, "high": 64, "steps": 3}},
        trials=3,
        sampler={"type": "grid"},
    )
    assert [point["hidden_units"] for point in grid_points(space_of(ours))] == [8, 36, 64]
