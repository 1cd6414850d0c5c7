"""The `when` of conditional parameters."""

from collections.abc import Mapping
from typing import Any

from tuner_service.definition.checks.context import CheckContext
from tuner_service.definition.faults import Path, did_you_mean
from tuner_service.definition.options import show
from tuner_service.definition.space import (
    MAX_CONDITION_VALUES,
    MAX_CONDITIONS_OF_ALL,
    CategoricalParameter,
    FloatParameter,
    Parameter,
    conditions,
    contains,
)


def check_conditions(context: CheckContext) -> None:
    """Conditions name other parameters and values these can have, and form no circle."""
    if not _check_number(context):
        return
    for name, parameter in context.draft.parameters.items():
        if parameter is None:
            continue
        for parent, values in conditions(parameter).items():
            _check_condition(context, ("parameters", name, "when", parent), parent, values)
    _check_circle(context)


def _check_number(context: CheckContext) -> bool:
    """Every draw of every trial looks at all of them."""
    given = [
        values
        for parameter in context.draft.parameters.values()
        if parameter is not None
        for values in conditions(parameter).values()
    ]
    for what, count, most in (
        ("conditions (`when`)", len(given), MAX_CONDITIONS_OF_ALL),
        ("values in conditions (`when`)", sum(map(len, given)), MAX_CONDITION_VALUES),
    ):
        if count > most:
            detail = f"a study has at most {most} {what} in all, but got {count}"
            context.faults.add(("parameters",), detail, code="over_cap")
            return False
    return True


def _check_condition(
    context: CheckContext, path: Path, parent: str, values: tuple[Any, ...]
) -> None:
    parameters = context.draft.parameters
    if parent not in parameters:
        training = context.draft.training
        if training is not None and parent in training.fixed:
            detail = f"{parent} is fixed, so a condition on it decides nothing; remove it"
            context.faults.add(path, detail, code="unknown_name")
        else:
            context.faults.unknown(path, "searched parameter", parent, parameters)
        return
    parameter = parameters[parent]
    if isinstance(parameter, FloatParameter):
        detail = f"{parent} is a float; a condition needs a categorical or int parameter"
        context.faults.add(path, detail, code="wrong_type")
    elif parameter is not None:
        _check_values(context, path, parent, parameter, values=values)


def _check_values(
    context: CheckContext, path: Path, parent: str, parameter: Parameter, *, values: tuple[Any, ...]
) -> None:
    for position, value in enumerate(values):
        if contains(parameter, value):
            continue
        # A single value may have been given without a list around it.
        where = path if len(values) == 1 else (*path, position)
        detail = f"{parent} is never {show(value)}{_hint(parameter, value)}"
        context.faults.add(where, detail, code="unknown_name")


def _hint(parameter: Parameter, value: object) -> str:
    if isinstance(parameter, CategoricalParameter) and isinstance(value, str):
        return did_you_mean(value, [one for one in parameter.choices if isinstance(one, str)])
    return ""


def _check_circle(context: CheckContext) -> None:
    names = set(context.draft.parameters)
    readable = {
        name: parameter
        for name, parameter in context.draft.parameters.items()
        if parameter is not None and names.issuperset(conditions(parameter))
    }
    circle = _circle(readable)
    if circle:
        first = circle[0]
        detail = f"conditions must not form a circle, but {', '.join(circle)} depend on each other"
        context.faults.add(("parameters", first, "when"), detail, code="circular")


def _circle(parameters: Mapping[str, Parameter]) -> list[str]:
    """Return the parameters that wait for each other, or for what waits so."""
    done = set[str]()
    waiting = list(parameters)
    while True:
        ready = [
            name
            for name in waiting
            if all(
                parent in done or parent not in parameters
                for parent in conditions(parameters[name])
            )
        ]
        if not ready:
            return waiting
        done.update(ready)
        waiting = [name for name in waiting if name not in done]
