"""The search space: order, what applies when, and domains."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.unit.definition.builders import choice, floats, ints, searching
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
    assert space.active("beta1", params) is applies


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
