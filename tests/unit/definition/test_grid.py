"""A grid is counted as it is expanded, without expanding it."""

import math
from typing import Any

import pytest
from hypothesis import given, settings

from tests.unit.definition.builders import choice, definition, floats, ints
from tests.unit.definition.spaces import spaces
from tuner_service.definition import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
    grid_count,
    grid_values,
    parse_definition,
    total_slots,
)
from tuner_service.definition.grid import grid_points, grid_size
from tuner_service.definition.space import contains, ordered


def test_steps_are_as_they_are_written() -> None:
    assert grid_values(FloatParameter(**floats(0.1, 0.7, step=0.1)))[2:] == (
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
    )


def points(space: Space, position: int = 0, point: dict[str, Any] | None = None) -> int:
    """Count by expanding every point: the reference."""
    point = point or {}
    if position == len(space.parameters):
        return 1
    name, parameter = space.parameters[position]
    if not space.applies(name, point):
        return points(space, position + 1, point)
    return sum(
        points(space, position + 1, {**point, name: value}) for value in grid_values(parameter)
    )


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (FloatParameter(**floats(0, 1, steps=3)), (0, 0.5, 1)),
        (FloatParameter(**floats(1e-4, 1e-2, steps=3, log=True)), (1e-4, 1e-3, 1e-2)),
        (FloatParameter(**floats(0.1, 0.4, step=0.1)), (0.1, 0.2, 0.3, 0.4)),
        (FloatParameter(**floats(0.0, 0.4, step=0.1, steps=3)), (0.0, 0.2, 0.4)),
        (IntParameter(**ints(1, 7, step=3)), (1, 4, 7)),
        (IntParameter(**ints(1, 3)), (1, 2, 3)),
        (IntParameter(**ints(1, 1000, steps=4, log=True)), (1, 10, 100, 1000)),
        (IntParameter(**ints(1, 3, steps=10)), (1, 2, 3)),  # rounded values fall together
        (CategoricalParameter(**choice("b", None, 2)), ("b", None, 2)),
    ],
)
def test_grid_values(parameter: Parameter, values: tuple[Any, ...]) -> None:
    assert grid_values(parameter) == pytest.approx(values) or grid_values(parameter) == values
    assert grid_count(parameter) == len(values)
    assert all(contains(parameter, value) for value in grid_values(parameter))


def test_ends_are_exact() -> None:
    parameter = FloatParameter(**floats(1e-5, 0.3, steps=7, log=True))
    assert (grid_values(parameter)[0], grid_values(parameter)[-1]) == (1e-5, 0.3)


@settings(max_examples=200, deadline=None)
@given(spaces())
def test_the_count_is_that_of_the_expanded_grid(space: Space) -> None:
    assert grid_size(space) == points(space)


@settings(max_examples=100, deadline=None)
@given(spaces())
def test_search_makes_as_many_points_as_are_counted(space: Space) -> None:
    assert sum(1 for _ in grid_points(space)) == grid_size(space)


def test_conditional_parameters_multiply_only_where_they_apply() -> None:
    data = definition(
        sampler={"type": "grid"},
        budget=...,
        parameters={
            "learning_rate": floats(1e-4, 1e-1, log=True, steps=4),
            "optimizer": choice("sgd", "nesterov", "adam"),
            "momentum": floats(0.1, 0.9, steps=3, when={"optimizer": ["sgd", "nesterov"]}),
        },
    )
    assert total_slots(parse_definition(data)) == 4 * (3 + 3 + 1)


def test_huge_grids_are_counted_without_expanding() -> None:
    big = {f"p{i}": IntParameter(type="int", low=0, high=2**53) for i in range(40)}
    assert grid_size(ordered(big)) == (2**53 + 1) ** 40
    big["q"] = IntParameter(type="int", low=0, high=2**53, when={"p0": (1, 2)})
    assert grid_size(ordered(big)) == (2**53 + 1) ** 39 * (2 * (2**53 + 1) + 2**53 - 1)


def test_entangled_conditions_are_given_up_on() -> None:
    parents = {f"p{i}": CategoricalParameter(**choice(0, 1)) for i in range(30)}
    child = CategoricalParameter(**choice(1, 2, when={name: [1] for name in list(parents)[:16]}))
    others = {
        f"q{i}": CategoricalParameter(**choice(1, 2, when={f"p{i}": [1], f"p{i + 1}": [0]}))
        for i in range(14, 29)
    }
    assert grid_size(ordered({**parents, "child": child, **others})) is None


def test_a_chain_of_conditions_is_cheap() -> None:
    chain: dict[str, Parameter] = {"p0": CategoricalParameter(**choice(0, 1))}
    for i in range(1, 60):
        when = {f"p{i - 1}": [1]}
        chain[f"p{i}"] = CategoricalParameter(**choice(0, 1, when=when))
    assert grid_size(ordered(chain)) == 61
    assert math.isfinite(points(ordered(dict(list(chain.items())[:10]))))
