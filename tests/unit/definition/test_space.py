"""The search space: order, what applies when, and domains."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.definition.builders import choice, faults_of, floats, ints, searching
from tests.unit.definition.spaces import spaces
from tuner_service.definition import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Space,
    parse_definition,
    space_of,
)
from tuner_service.definition.space import contains, ordered


def test_conditions_come_before_what_depends_on_them() -> None:
    space = space_of(
        parse_definition(
            searching(
                beta1=floats(0.5, 0.9, when={"hidden_layers": 3}),
                dropout=floats(0.0, 0.5),
                hidden_layers=choice(2, 3, when={"optimizer": "adam"}),
                optimizer=choice("sgd", "adam"),
            )
        )
    )
    assert [name for name, _ in space] == ["dropout", "optimizer", "hidden_layers", "beta1"]
    assert space.conditional


@pytest.mark.parametrize(
    ("params", "applies"),
    [
        ({}, False),
        ({"optimizer": "sgd"}, False),
        ({"optimizer": "adam"}, False),
        ({"optimizer": "adam", "hidden_layers": 2}, False),
        ({"optimizer": "adam", "hidden_layers": 3}, True),
        ({"optimizer": "sgd", "hidden_layers": 3}, False),  # the condition itself does not apply
        ({"hidden_layers": 3}, False),
        ({"optimizer": "adam", "hidden_layers": True}, False),
    ],
)
def test_a_parameter_applies_when_all_its_conditions_do(
    params: dict[str, Any], applies: bool
) -> None:
    space = ordered(
        {
            "optimizer": CategoricalParameter(type="categorical", choices=("sgd", "adam")),
            "hidden_layers": IntParameter(type="int", low=1, high=3, when={"optimizer": ("adam",)}),
            "beta1": FloatParameter(type="float", low=0.5, high=0.9, when={"hidden_layers": (3,)}),
        }
    )
    assert ("beta1" in space.active(params)) is applies


def test_activity_in_a_diamond_of_conditions_costs_one_pass() -> None:
    names = [f"p{i}" for i in range(60)]
    space = ordered(
        {
            name: CategoricalParameter(
                type="categorical",
                choices=(0, 1),
                when=dict.fromkeys(names[max(0, i - 4) : i], (1,)) or None,
            )
            for i, name in enumerate(names)
        }
    )
    # Between the first and the last lie more paths than could be walked in years.
    assert space.active(dict.fromkeys(names, 1)) == set(names)
    assert space.active({**dict.fromkeys(names, 1), "p30": 0}) == set(names[:31])


def _diamond() -> dict[str, Any]:
    names = [f"p{i}" for i in range(25)]
    whens: list[dict[str, Any]] = [
        {"when": dict.fromkeys(names[max(0, i - 16) : i], 1)} for i in range(1, 25)
    ]
    return {"p0": choice(0, 1)} | {
        name: choice(0, 1, **when) for name, when in zip(names[1:], whens, strict=True)
    }


def _long_lists() -> dict[str, Any]:
    many = {"p": list(range(1000))}
    return {"p": choice(*range(1000))} | {f"p{i}": choice(0, 1, when=many) for i in range(5)}


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (_diamond(), "a study has at most 256 conditions (`when`) in all, but got 264"),
        (
            _long_lists(),
            "a study has at most 4096 values in conditions (`when`) in all, but got 5000",
        ),
    ],
)
def test_the_conditions_of_a_study_are_bounded(parameters: dict[str, Any], sentence: str) -> None:
    found = [fault for fault in faults_of(searching(**parameters)) if fault.code == "over_cap"]
    assert [(fault.pointer, fault.detail) for fault in found] == [("/parameters", sentence)]


def test_true_is_not_one() -> None:
    parameter = CategoricalParameter(type="categorical", choices=(1, 2))
    assert contains(parameter, 1)
    assert not contains(parameter, True)
    assert not contains(IntParameter(type="int", low=0, high=2), True)


def test_a_circle_is_refused() -> None:
    one = CategoricalParameter(type="categorical", choices=(1,), when={"b": (1,)})
    other = CategoricalParameter(type="categorical", choices=(1,), when={"a": (1,)})
    with pytest.raises(ValueError, match="circle"):
        ordered({"a": one, "b": other})


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (FloatParameter(**floats(0.1, 0.5)), [0.1, 0.3, 0.5], [0.09, 0.51, "0.3", None, True]),
        (FloatParameter(**floats(0.0, 0.3, step=0.1)), [0, 0.1, 0.2 + 1e-12, 0.3], [0.15, 0.31]),
        (IntParameter(**ints(2, 8, step=3)), [2, 5, 8, 5.0], [3, 4, 5.5, 11, -1]),
        (CategoricalParameter(**choice("a", None, 1.0)), ["a", None, 1], ["b", 0, True]),
        (FloatParameter(**floats(0.1, 0.5)), [], [float("nan"), float("inf"), 10**400]),
    ],
)
def test_domains(parameter: Any, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not contains(parameter, value)] == []
    assert [value for value in outside if contains(parameter, value)] == []


@pytest.mark.parametrize("low", [0.0, 1.0, 3e5])
def test_the_values_of_a_fine_grid_are_in_it(low: float) -> None:
    step = 1e-9
    parameter = FloatParameter(**floats(low, low + 0.5, step=step))
    places = [*range(0, 500_000_000, 7_654_321), 499_999_999]
    assert [k for k in places if not contains(parameter, low + k * step)] == []
    outside = [low + (k + 0.4) * step for k in places[:-1]]
    assert [value for value in outside if contains(parameter, value)] == []


@settings(max_examples=300, deadline=None)
@given(
    low=st.floats(allow_nan=False, allow_infinity=False),
    high=st.floats(allow_nan=False, allow_infinity=False),
    step=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    log=st.booleans(),
)
def test_a_float_domain_is_sound_or_refused(
    low: float, high: float, step: float | None, log: bool
) -> None:
    try:
        parameter = FloatParameter(type="float", low=low, high=high, step=step, log=log)
    except ValidationError:
        return
    assert parameter.low < parameter.high
    assert not (log and low <= 0)
    assert contains(parameter, low)
    assert contains(parameter, high)


@settings(max_examples=200, deadline=None)
@given(spaces())
def test_every_order_has_conditions_first(space: Space) -> None:
    seen: set[str] = set()
    for name, parameter in space:
        assert set(parameter.when or {}) <= seen
        seen.add(name)
