"""The grid: which values a parameter takes in it, how many points it has, and each of them once.

Points are counted without making them, so that a definition with too many can be refused first. A
conditional parameter multiplies points only where it applies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from tuner_service.definition.options import same_scalar
from tuner_service.definition.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    Space,
    conditions,
    contains,
)

State = tuple[Any, ...]

_MAX_STATES = 20_000


def has_grid(parameter: Parameter) -> bool:
    """Return whether a grid knows which values to take: a float needs `steps` or `step`."""
    if isinstance(parameter, FloatParameter):
        return parameter.steps is not None or parameter.step is not None
    return True


def grid_count(parameter: Parameter) -> int:
    """Return the number of grid values, without making them where they may be many."""
    if isinstance(parameter, CategoricalParameter):
        return len(parameter.choices)
    if parameter.steps is not None:
        return len(grid_values(parameter))
    if isinstance(parameter, IntParameter):
        return (parameter.high - parameter.low) // (parameter.step or 1) + 1
    if parameter.step is None:
        raise ValueError("a float parameter needs steps or step in a grid")
    return round((parameter.high - parameter.low) / parameter.step) + 1


def grid_values(parameter: Parameter) -> tuple[Any, ...]:
    """Return the parameter's values in a grid, ascending (choices: as written)."""
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    if parameter.steps is not None:
        return _spaced(parameter, parameter.steps)
    if isinstance(parameter, IntParameter):
        return tuple(range(parameter.low, parameter.high + 1, parameter.step or 1))
    # In decimals, as written: in binary the third step of 0.1 is 0.30000000000000004.
    low, step = Decimal(repr(parameter.low)), Decimal(repr(parameter.step or 0.0))
    return tuple(min(float(low + i * step), parameter.high) for i in range(grid_count(parameter)))


def _spaced(parameter: FloatParameter | IntParameter, steps: int) -> tuple[Any, ...]:
    """Return `steps` evenly spaced values, both ends exact; whole and distinct for an int."""
    places = (i / (steps - 1) for i in range(steps))
    if parameter.log:
        low, high = math.log(parameter.low), math.log(parameter.high)
        values = [math.exp(low + place * (high - low)) for place in places]
    else:
        values = [parameter.low + place * (parameter.high - parameter.low) for place in places]
    values[0], values[-1] = parameter.low, parameter.high
    if isinstance(parameter, FloatParameter) and parameter.step is None:
        return tuple(min(max(value, parameter.low), parameter.high) for value in values)
    step = parameter.step or 1
    on_step = (parameter.low + round((value - parameter.low) / step) * step for value in values)
    return tuple(dict.fromkeys(min(max(v, parameter.low), parameter.high) for v in on_step))


def grid_size(space: Space) -> int | None:
    """Return the number of grid points; None when conditions are too entangled to count.

    Conditional parameters multiply only the points where they apply. Counted by walking the
    parameters in order and keeping how many points there are per combination of those values that
    later conditions look at: without conditions that is a plain product.
    """
    states: dict[State, int] = {(): 1}
    kept: tuple[str, ...] = ()
    for position, (name, parameter) in enumerate(space.parameters):
        before, kept = kept, (*kept, name)
        later = [conditions(other) for _, other in space.parameters[position + 1 :]]
        watched = {value for when in later for value in when.get(name, ())}
        branches = _branches(parameter, watched)
        grown: dict[State, int] = {}
        kept = tuple(one for one in kept if any(one in when for when in later))
        for state, count in states.items():
            params = dict(zip(before, state, strict=True))
            for value, times in branches if _applies(parameter, params) else _NOT_APPLYING:
                params[name] = value
                key = tuple(params[one] for one in kept)
                grown[key] = grown.get(key, 0) + count * times
            if len(grown) > _MAX_STATES:
                return None
        states = grown
    return sum(states.values())


def grid_points(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every grid point once, the last parameter changing fastest."""
    values = {name: grid_values(parameter) for name, parameter in space.parameters}
    return _expand(space, tuple(values), values, {})


def _expand(
    space: Space,
    names: tuple[str, ...],
    values: Mapping[str, Sequence[Any]],
    point: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    if not names:
        yield dict(point)
        return
    name, rest = names[0], names[1:]
    if not space.applies(name, point):
        yield from _expand(space, rest, values, point)
        return
    for value in values[name]:
        yield from _expand(space, rest, values, {**point, name: value})


class _Unwatched:
    """Stands for every value that no condition names, and for not applying."""


_UNWATCHED = _Unwatched()
_NOT_APPLYING: tuple[tuple[Any, int], ...] = ((_UNWATCHED, 1),)


def _applies(parameter: Parameter, params: Mapping[str, Any]) -> bool:
    return all(
        any(same_scalar(params[parent], value) for value in values)
        for parent, values in conditions(parameter).items()
    )


def _branches(parameter: Parameter, watched: set[Any]) -> tuple[tuple[Any, int], ...]:
    """Return (value, how many grid values it stands for), the unwatched ones as one."""
    total = grid_count(parameter)
    named = _in_grid(parameter, watched)
    rest = total - len(named)
    return (*((value, 1) for value in named), *(((_UNWATCHED, rest),) if rest else ()))


def _in_grid(parameter: Parameter, watched: set[Any]) -> list[Any]:
    if isinstance(parameter, CategoricalParameter) or parameter.steps is None:
        return [value for value in watched if contains(parameter, value)]
    values = set(grid_values(parameter))
    return [value for value in watched if value in values]
