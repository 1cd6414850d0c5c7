"""Samplers by name: what proposes the parameters of a slot that has none yet.

Those of installed packages are found by their entry points (`installed.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tuner_service.definition.catalogue.entries import Draws
from tuner_service.definition.space import Space
from tuner_service.search.history import History
from tuner_service.search.samplers.optuna_adapter import optuna_tpe
from tuner_service.search.samplers.tpe.search import TpeSearch
from tuner_service.search.samplers.uniform import draw


class Sampler(Protocol):
    """Proposes parameters; the same for the same history, seed and slot."""

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters for a slot; `fixed` values of an enqueued point stand."""


class RandomSearch:
    """Draws that do not look at the history. Such slots are fixed at submit already."""

    def __init__(self, space: Space, *, seed: int, draws: Draws = "independent") -> None:
        self._space = space
        self._seed = seed
        self._draws: Draws = draws

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters drawn uniformly from the space."""
        return draw(self._space, seed=self._seed, slot=slot, fixed=fixed, draws=self._draws)


SamplerFactory = Callable[[Space, int, Sequence[bool], Mapping[str, Any]], Sampler]
"""From the space, the study's seed, whether each objective is maximized, and the settings."""


def _random(
    space: Space, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]
) -> Sampler:
    return RandomSearch(space, seed=seed)


def _qmc(space: Space, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]) -> Sampler:
    return RandomSearch(space, seed=seed, draws="sobol")


def _tpe(space: Space, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]) -> Sampler:
    if len(maximize) > 1:
        return optuna_tpe(space, seed=seed, maximize=maximize, settings=settings)
    return TpeSearch(
        space,
        seed=seed,
        maximize=maximize[0],
        startup_trials=settings["startup_trials"],
        candidates=settings["candidates"],
    )


SAMPLERS: dict[str, SamplerFactory] = {"grid": _random, "random": _random, "qmc": _qmc, "tpe": _tpe}
"""Samplers by the name a definition gives; the settings are those of the catalogue."""
