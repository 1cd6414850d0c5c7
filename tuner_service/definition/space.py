"""The search space: parameters with their domains, and which of them apply when.

A parameter with `when` applies only where every parameter named there applies and has one of the
listed values. `Space` puts conditions before what depends on them.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from tuner_service.definition.options import LARGEST_INT, same_scalar, show
from tuner_service.definition.types import Bool, DefinitionModel, Float, Int, OneOrMore, ScalarField

MAX_CHOICES = 1000
MAX_STEPS = 10_000
MAX_CONDITIONS = 16
MAX_CONDITIONS_OF_ALL = 256
MAX_CONDITION_VALUES = 4096
_MOST_STEPS = 10**9

When = Annotated[
    dict[
        str,
        Annotated[
            tuple[ScalarField, ...], Field(min_length=1, max_length=MAX_CHOICES), OneOrMore()
        ],
    ],
    Field(min_length=1, max_length=MAX_CONDITIONS),
]
"""Parameter name → the values with which the conditional one applies."""


class FloatParameter(DefinitionModel):
    """A real number from low to high, both included.

    Attributes:
        log: Search on a logarithmic scale; low must be above 0.
        step: Only low, low + step, low + 2 step, …
        steps: How many values a grid takes, evenly spaced (in the logarithm with `log`), both
            ends included. Other samplers ignore it.
        when: Names of other parameters, and the values of them with which this one applies.
    """

    # `log` stands before `low`, so that the check of `low` knows it.
    type: Literal["float"]
    log: Bool = False
    low: Float
    high: Float
    step: Float | None = Field(default=None, gt=0)
    steps: Int | None = Field(default=None, ge=2, le=MAX_STEPS)
    when: When | None = None

    @field_validator("low")
    @classmethod
    def _log_from_above_zero(cls, low: float, info: ValidationInfo) -> float:
        return _check_log_low(low, info.data, smallest=0.0, relation="low > 0")

    @field_validator("high")
    @classmethod
    def _above_low(cls, high: float, info: ValidationInfo) -> float:
        return _check_high(high, info.data)

    @field_validator("step")
    @classmethod
    def _step_fits(cls, step: float | None, info: ValidationInfo) -> float | None:
        if step is not None:
            _check_step(step, info.data)
        return step


class IntParameter(DefinitionModel):
    """A whole number from low to high, both included.

    Attributes:
        log: Search on a logarithmic scale; low must be above 0.
        step: Only low, low + step, low + 2 step, …
        steps: How many values a grid takes, evenly spaced (in the logarithm with `log`) and
            rounded; without it a grid takes them all. Other samplers ignore it.
        when: Names of other parameters, and the values of them with which this one applies.
    """

    type: Literal["int"]
    log: Bool = False
    low: Int = Field(ge=-LARGEST_INT, le=LARGEST_INT)
    high: Int = Field(ge=-LARGEST_INT, le=LARGEST_INT)
    step: Int | None = Field(default=None, ge=1, le=LARGEST_INT)
    steps: Int | None = Field(default=None, ge=2, le=MAX_STEPS)
    when: When | None = None

    @field_validator("low")
    @classmethod
    def _log_from_above_zero(cls, low: int, info: ValidationInfo) -> int:
        return int(_check_log_low(low, info.data, smallest=0, relation="low >= 1"))

    @field_validator("high")
    @classmethod
    def _above_low(cls, high: int, info: ValidationInfo) -> int:
        return int(_check_high(high, info.data))

    @field_validator("step")
    @classmethod
    def _step_fits(cls, step: int | None, info: ValidationInfo) -> int | None:
        if step is not None:
            _check_step(step, info.data)
        return step


class CategoricalParameter(DefinitionModel):
    """One of a list of scalars, without order.

    Attributes:
        choices: Text, numbers, true, false or null; all different.
        when: Names of other parameters, and the values of them with which this one applies.
    """

    type: Literal["categorical"]
    choices: tuple[ScalarField, ...] = Field(min_length=1, max_length=MAX_CHOICES)
    when: When | None = None

    @field_validator("choices")
    @classmethod
    def _distinct(cls, choices: tuple[Any, ...]) -> tuple[Any, ...]:
        # Optuna finds a choice by equality, where True is 1 and 1 is 1.0; so does a set.
        seen: set[Any] = set()
        for choice in choices:
            if choice in seen:
                raise ValueError(f"choices must differ, but got {show(choice)} twice")
            seen.add(choice)
        return choices


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")
]

PARAMETER_TYPES: Mapping[str, type[FloatParameter | IntParameter | CategoricalParameter]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}


def _check_log_low(low: float, data: Mapping[str, Any], *, smallest: float, relation: str) -> float:
    if data.get("log") and low <= smallest:
        raise ValueError(f"`{relation}` must hold with log, but got (low={show(low)})")
    return low


def _check_high(high: float, data: Mapping[str, Any]) -> float:
    low = data.get("low")
    if low is None:
        return high
    if not low < high:
        raise ValueError(f"`low < high` must hold, but got (low={show(low)}, high={show(high)})")
    if not math.isfinite(float(high) - float(low)):
        raise ValueError(f"high - low must be finite, but got (low={low}, high={high})")
    return high


def _check_step(step: float, data: Mapping[str, Any]) -> None:
    if data.get("log"):
        raise ValueError("log and step exclude each other; leave one out")
    low, high = data.get("low"), data.get("high")
    if low is None or high is None:
        return
    if (high - low) / step > _MOST_STEPS:
        raise ValueError(f"(high - low) / step must be at most 1e9, but got (step={show(step)})")
    # In decimals, as written: in binary 0.3 is no multiple of 0.1.
    count, rest = divmod(_decimal(high) - _decimal(low), _decimal(step))
    if rest:
        last = _decimal(low) + count * _decimal(step)
        raise ValueError(
            f"high - low must be a multiple of step, but got (low={show(low)}, "
            f"high={show(high)}, step={show(step)}); high={float(last):g} or "
            f"high={float(last + _decimal(step)):g} would do"
        )


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def contains(parameter: Parameter, value: object) -> bool:
    """Return whether a value lies in the parameter's domain."""
    if isinstance(parameter, CategoricalParameter):
        # No two choices are equal, so the first that is equal is the only one.
        if value not in parameter.choices:
            return False
        return same_scalar(value, parameter.choices[parameter.choices.index(value)])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if not parameter.low <= value <= parameter.high:
        return False
    if isinstance(parameter, IntParameter):
        return value == int(value) and (int(value) - parameter.low) % (parameter.step or 1) == 0
    if parameter.step is None:
        return True
    place = (value - parameter.low) / parameter.step
    # Optuna's tolerance, but on a fine grid what a float64 can tell of the value.
    resolution = 4 * sys.float_info.epsilon * max(abs(value), abs(parameter.low)) / parameter.step
    return abs(place - round(place)) < max(1e-8, resolution)


def canonical(parameter: Parameter, value: Any) -> Any:
    """Return a value of the parameter's domain as the domain has it.

    The choice itself, a whole number for an int (JSON may say 64.0), a float for a float.
    """
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices[parameter.choices.index(value)]
    return int(value) if isinstance(parameter, IntParameter) else float(value)


def conditions(parameter: Parameter) -> Mapping[str, tuple[Any, ...]]:
    """Return the parameter's `when`, empty if it always applies."""
    return parameter.when or {}


@dataclass(frozen=True)
class Space:
    """The parameters of a study, each after those that its `when` names."""

    parameters: tuple[tuple[str, Parameter], ...]

    def __iter__(self) -> Iterator[tuple[str, Parameter]]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """The parameters by name, in the same order."""
        return dict(self.parameters)

    @property
    def conditional(self) -> bool:
        """Whether any parameter has a `when`."""
        return any(parameter.when for _, parameter in self.parameters)

    def active(self, params: Mapping[str, Any]) -> set[str]:
        """Return the parameters that apply, given values that need not all apply themselves.

        One pass: each stands after its conditions. By recursion every path between two
        parameters would be walked, and of those there can be exponentially many.
        """
        found: set[str] = set()
        holding: dict[str, Any] = {}
        for name, _ in self.parameters:
            if self.applies(name, holding):
                found.add(name)
                if name in params:
                    holding[name] = params[name]
        return found

    def applies(self, name: str, params: Mapping[str, Any]) -> bool:
        """Return whether a parameter applies, given the values of those before it that do."""
        return all(
            parent in params and any(same_scalar(params[parent], value) for value in values)
            for parent, values in conditions(self.by_name[name]).items()
        )


def ordered(parameters: Mapping[str, Parameter]) -> Space:
    """Put conditions before dependants.

    Raises:
        ValueError: A condition names no parameter, or parameters depend on each other in a circle.
    """
    done: dict[str, Parameter] = {}
    waiting = dict(parameters)
    while waiting:
        ready = [
            name
            for name, parameter in waiting.items()
            if all(parent in done for parent in conditions(parameter))
        ]
        if not ready:
            raise ValueError(f"conditions form a circle or name no parameter: {sorted(waiting)}")
        # One at a time, so that the order stays as close to the written one as it can.
        done[ready[0]] = waiting.pop(ready[0])
    return Space(tuple(done.items()))


def ancestors(parameters: Mapping[str, Parameter], name: str) -> Iterable[str]:
    """Return every parameter on which this one's applying depends, itself not included."""
    seen: dict[str, None] = {}
    waiting = list(conditions(parameters[name]))
    while waiting:
        parent = waiting.pop()
        if parent not in seen and parent in parameters:
            seen[parent] = None
            waiting += conditions(parameters[parent])
    return seen
