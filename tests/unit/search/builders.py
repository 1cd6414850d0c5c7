"""Spaces, histories and definitions for the tests of search."""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution

from tests.unit.definition.builders import definition
from tuner_service.definition import StudyDefinition, parse_definition
from tuner_service.definition.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
    ordered,
)
from tuner_service.search.distributions import distributions
from tuner_service.search.history import HistoryState, HistoryTrial

PARAMETERS: dict[str, Any] = {
    "optimizer": {"type": "categorical", "choices": ["sgd", "nesterov", "adam"]},
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "momentum": {
        "type": "float",
        "low": 0.1,
        "high": 0.99,
        "when": {"optimizer": ["sgd", "nesterov"]},
    },
    "hidden_units": {"type": "int", "low": 32, "high": 512, "log": True},
}


def floats(low: float, high: float, **more: Any) -> FloatParameter:
    return FloatParameter(type="float", low=low, high=high, **more)


def ints(low: int, high: int, **more: Any) -> IntParameter:
    return IntParameter(type="int", low=low, high=high, **more)


def choice(*choices: Any, **more: Any) -> CategoricalParameter:
    return CategoricalParameter(type="categorical", choices=choices, **more)


def space(**parameters: Parameter) -> Space:
    return ordered(parameters)


def study(
    *, parameters: Mapping[str, Any] = PARAMETERS, trials: int = 100, **changes: Any
) -> StudyDefinition:
    """Return a parsed definition with conditions unless other parameters are given."""
    return parse_definition(
        definition(parameters=dict(parameters), budget={"trials": trials}, **changes)
    )


def stored(
    trial_id: int,
    params: Mapping[str, Any],
    state: HistoryState = "COMPLETE",
    *,
    distributions: Mapping[str, BaseDistribution],
    value: float | None = None,
    **more: Any,
) -> HistoryTrial:
    """Return a trial as the database would have it."""
    return HistoryTrial(
        trial_id=trial_id,
        number=trial_id,
        state=state,
        params=params,
        distributions={name: distributions[name] for name in params},
        values=None if value is None else (value,),
        **more,
    )


def stored_like(space: Space, trials: Sequence[tuple[Any, ...]]) -> list[HistoryTrial]:
    """Return COMPLETE trials 1, 2, … from (params, value) pairs."""
    by_name = distributions(space)
    return [
        stored(number, params, distributions=by_name, value=value)
        for number, (params, value) in enumerate(trials, start=1)
    ]
