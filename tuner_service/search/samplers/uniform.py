"""Independent uniform draws, fixed by (study seed, slot number).

Every parameter has its own place in the slot's stream, whether it applies or not, so that neither
the number of workers nor a condition changes what another parameter gets.
"""

import math
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner_service.definition.space import Space
from tuner_service.search.distributions import distributions


def slot_generator(seed: int, slot: int) -> Generator:
    """Return the generator of one slot's draws; the same wherever it is asked for."""
    return Generator(PCG64(SeedSequence((seed, slot))))


def draw(
    space: Space, *, seed: int, slot: int, fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return parameters drawn uniformly from the space (log-uniformly where `log` says so).

    Args:
        fixed: Values that stand, from an enqueued point; may be partial.
    """
    places = slot_generator(seed, slot).random(len(space.parameters))
    by_name = distributions(space)
    fixed = fixed or {}
    params: dict[str, Any] = {}
    for (name, _), place in zip(space.parameters, places, strict=True):
        if space.applies(name, params):
            params[name] = fixed[name] if name in fixed else at(by_name[name], float(place))
    return params


def at(distribution: BaseDistribution, place: float) -> Any:
    """Return the value at `place` in [0, 1) of a distribution's range."""
    match distribution:
        case CategoricalDistribution():
            return distribution.choices[int(place * len(distribution.choices))]
        case IntDistribution():
            return _int_at(distribution, place)
        case FloatDistribution():
            return _float_at(distribution, place)
        case _:
            assert_never(distribution)  # type: ignore[arg-type]


def _int_at(distribution: IntDistribution, place: float) -> int:
    low, high, step = distribution.low, distribution.high, distribution.step
    if not distribution.log:
        return low + int(place * ((high - low) // step + 1)) * step
    # Each integer owns the log-interval half a unit either side of it, as in Optuna.
    value = round(_log_between(low - 0.5, high + 0.5, place))
    return min(max(value, low), high)


def _float_at(distribution: FloatDistribution, place: float) -> float:
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        return min(max(_log_between(low, high, place), low), high)
    if step is None:
        return min(low + place * (high - low), high)
    steps = round((high - low) / step)
    return float(np.clip(low + int(place * (steps + 1)) * step, low, high))


def _log_between(low: float, high: float, place: float) -> float:
    return math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
