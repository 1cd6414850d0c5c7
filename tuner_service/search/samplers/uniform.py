"""Independent uniform draws, fixed by (study seed, slot number).

Every parameter has its own place in the slot's stream, whether it applies or not, so that neither
the number of workers nor a condition changes what another parameter gets.

Also points all over a study's space, for trying whether anything in it can be trained.
"""

import importlib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, assert_never

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tuner_service.definition import StudyDefinition, space_of, total_slots
from tuner_service.definition.catalogue.entries import Draws
from tuner_service.definition.grid import grid_points
from tuner_service.definition.space import Space
from tuner_service.search.distributions import distributions

_EVEN: Final = 16  # slots of one block
_EVEN_STREAM: Final = 2  # apart from a slot's own draws, and from TPE's
_SOBOL: Final = 16_384  # points made at once: a study of millions skips to few blocks
_SOBOL_STREAM: Final = 3
_PROBES: Final = 1 << 40  # beyond every slot: the draws of `spread_points` are none of the study's


def slot_generator(seed: int, slot: int) -> Generator:
    """Return the generator of one slot's draws; the same wherever it is asked for."""
    return Generator(PCG64(SeedSequence((seed, slot))))


Floats = NDArray[np.float64]


def _independent_places(seed: int, slot: int, count: int) -> Floats:
    return np.asarray(slot_generator(seed, slot).random(count))


def _sobol_places(seed: int, slot: int, count: int) -> Floats:
    block, at_place = divmod(slot, _SOBOL)
    return np.asarray(_sobol_block(seed, block, count)[at_place])


@lru_cache(maxsize=2)
def _sobol_block(seed: int, block: int, count: int) -> Floats:
    """Return [_SOBOL, count] points of the sequence; nothing is missing between two blocks."""
    qmc = importlib.import_module("scipy.stats.qmc")  # half a second: only where it is wanted
    engine = qmc.Sobol(count, seed=np.random.default_rng((seed, _SOBOL_STREAM)))
    if block:
        engine.fast_forward(block * _SOBOL)
    return np.asarray(engine.random(_SOBOL))


def _even_places(seed: int, slot: int, count: int) -> Floats:
    """Return [count] places of a slot: of each `_EVEN` slots in a row, one in each such part.

    A Latin hypercube of each block of slots: whichever parameter matters, its range is covered.
    """
    block, at_place = divmod(slot, _EVEN)
    generator = Generator(PCG64(SeedSequence((seed, block, _EVEN_STREAM))))
    parts = generator.permuted(np.tile(np.arange(_EVEN), (count, 1)), axis=1)
    within = generator.random((count, _EVEN))
    return np.asarray((parts[:, at_place] + within[:, at_place]) / _EVEN)


_PLACES: Final[Mapping[Draws, Callable[[int, int, int], Floats]]] = {
    "independent": _independent_places,
    "even": _even_places,
    "sobol": _sobol_places,
}
"""From seed, slot and the number of parameters to [count] places in [0, 1)."""


def draw(
    space: Space,
    *,
    seed: int,
    slot: int,
    fixed: Mapping[str, Any] | None = None,
    draws: Draws = "independent",
) -> dict[str, Any]:
    """Return parameters drawn uniformly from the space (log-uniformly where `log` says so).

    Args:
        fixed: Values that stand, from an enqueued point; may be partial.
        draws: Whether it is spread over the space together with the slots before and after.
    """
    places = _PLACES[draws](seed, slot, len(space.parameters))
    by_name = distributions(space)
    fixed = fixed or {}
    params: dict[str, Any] = {}
    for (name, _), place in zip(space.parameters, places, strict=True):
        if space.applies(name, params):
            params[name] = fixed[name] if name in fixed else at(by_name[name], float(place))
    return params


def first_point(definition: StudyDefinition) -> dict[str, Any]:
    """Return the parameters of the first slot, drawn where only a sampler would tell."""
    if definition.sampler.entry.budget_from_grid:
        return dict(next(iter(grid_points(space_of(definition)))))
    fixed = dict(definition.enqueue[0]) if definition.enqueue else {}
    space, sampler = space_of(definition), definition.sampler
    draws = sampler.entry.draws
    return dict(draw(space, seed=sampler.seed, slot=0, fixed=fixed, draws=draws))


def spread_points(definition: StudyDefinition, count: int) -> list[dict[str, Any]]:
    """Return up to `count` different points, drawn independently; of a grid, of its own."""
    seed = definition.sampler.seed
    if definition.sampler.entry.budget_from_grid:
        size = total_slots(definition)
        chosen = slot_generator(seed, _PROBES).choice(size, min(count, size), replace=False)
        wanted = set(chosen.tolist())
        return [point for at, point in enumerate(grid_points(space_of(definition))) if at in wanted]
    space = space_of(definition)
    drawn = [draw(space, seed=seed, slot=_PROBES + at) for at in range(count)]
    return [point for at, point in enumerate(drawn) if point not in drawn[:at]]


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
