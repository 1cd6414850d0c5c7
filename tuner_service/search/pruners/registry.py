"""Pruners by name: they decide from the mirror and write nothing.

Every decision is a pure function of the mirror's trials, so that any worker with the same mirror
decides the same. Each equals the pruner of the same name in Optuna on the same trials, with the
differences named at the class. Costs are for n finished trials and r running ones; the supervisor
asks after every report, so they must not grow with n.

Steps are what trials report: epochs, from 1.
"""

import math
from array import array
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tuner_service.search.history import History, MirroredTrial, Reader
from tuner_service.search.pruners.halving import HyperbandPruner, SuccessiveHalvingPruner


class Pruner(Protocol):
    """Decides whether a running trial should stop."""

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return whether the trial should stop, given its last report."""


class NonePruner:
    """Prunes nothing."""

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return False."""
        return False


class ThresholdPruner:
    """Prunes a trial whose last value is NaN or outside [lower, upper]. Cost: O(its reports)."""

    def __init__(
        self,
        *,
        lower: float | None = None,
        upper: float | None = None,
        warmup_steps: int = 0,
        interval_steps: int = 1,
    ) -> None:
        self._lower = -math.inf if lower is None else lower
        self._upper = math.inf if upper is None else upper
        self._warmup_steps = warmup_steps
        self._interval_steps = interval_steps

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return whether the last value lies outside, at a step that is checked."""
        step = trial.last_step
        if step is None or not is_checked(trial, step, self._warmup_steps, self._interval_steps):
            return False
        value = trial.intermediate_values[step]
        return math.isnan(value) or value < self._lower or value > self._upper


class PercentilePruner:
    """Prunes a trial whose best value so far is worse than a percentile at the same step.

    Compared are the values at that step of COMPLETE trials. Cost: O(log n) a decision, and
    O(n) memory moves for each step of each trial that completes.

    Args:
        percentile: In [0, 100]; 25 keeps the best quarter.
        startup_trials: Nothing is pruned before so many trials are COMPLETE.
        warmup_steps: Nothing is pruned at an earlier step.
        interval_steps: Steps between checks, from `warmup_steps` on.
        min_trials: At least so many must have reported at the step.
    """

    def __init__(
        self,
        *,
        maximize: bool,
        percentile: float,
        startup_trials: int = 5,
        warmup_steps: int = 0,
        interval_steps: int = 1,
        min_trials: int = 1,
    ) -> None:
        self._maximize = maximize
        self._percentile = 100 - percentile if maximize else percentile
        self._startup_trials = max(startup_trials, 1)
        self._warmup_steps = warmup_steps
        self._interval_steps = interval_steps
        self._min_trials = min_trials
        self._steps = _StepValues()

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return whether the trial's best value is worse than the percentile at its last step."""
        step = trial.last_step
        if step is None or not is_checked(trial, step, self._warmup_steps, self._interval_steps):
            return False
        self._steps.catch_up(history)
        if self._steps.complete < self._startup_trials:
            return False
        best = best_value(trial.intermediate_values.values(), maximize=self._maximize)
        if math.isnan(best):
            return True
        bound = self._steps.percentile(step, self._percentile, self._min_trials)
        return best < bound if self._maximize else best > bound


class PatiencePruner:
    """Lets another pruner decide only when a trial has stopped improving.

    Args:
        patience: Steps after the best one in which nothing happens.
        min_delta: An improvement smaller than this is none.
        wrapped: Decides when patience has ended; None prunes at once.
    """

    def __init__(
        self,
        *,
        maximize: bool,
        patience: int,
        min_delta: float = 0.0,
        wrapped: Pruner | None = None,
    ) -> None:
        self._maximize = maximize
        self._patience = patience
        self._min_delta = min_delta
        self._wrapped = wrapped

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return what the wrapped pruner says, once the last `patience + 1` steps are no better."""
        if not self._has_stalled(trial.intermediate_values):
            return False
        return self._wrapped is None or self._wrapped.should_prune(history, trial)

    def _has_stalled(self, values: Mapping[int, float]) -> bool:
        if len(values) <= self._patience + 1:
            return False
        ordered = [values[step] for step in sorted(values)]
        before = best_value(ordered[: -self._patience - 1], maximize=self._maximize)
        after = best_value(ordered[-self._patience - 1 :], maximize=self._maximize)
        if self._maximize:
            return before - self._min_delta > after
        return before + self._min_delta < after


class _StepValues:
    """Per step, the sorted values of COMPLETE trials; NaN is counted, not kept."""

    def __init__(self) -> None:
        self.complete = 0
        self._values: dict[int, array[float]] = {}
        self._reported: dict[int, int] = {}
        self._reader = Reader(self._restart, self._add)

    def catch_up(self, history: History) -> None:
        self._reader.catch_up(history)

    def percentile(self, step: int, percentile: float, min_trials: int) -> float:
        """Return the percentile of the values at a step; NaN when too few trials reported."""
        values = self._values.get(step)
        if not values or self._reported[step] < min_trials:
            return math.nan
        return sorted_percentile(values, percentile)

    def _restart(self) -> None:
        self.complete = 0
        self._values, self._reported = {}, {}

    def _add(self, trial: MirroredTrial) -> None:
        if trial.state != "COMPLETE":
            return
        self.complete += 1
        for step, value in trial.intermediate_values.items():
            self._reported[step] = self._reported.get(step, 0) + 1
            column = self._values.setdefault(step, array("d"))
            if not math.isnan(value):
                insort(column, value)


def sorted_percentile(values: Sequence[float], percentile: float) -> float:
    """Return `numpy.percentile(values, percentile)` of sorted values, to the last bit.

    The formula is that of NumPy's "linear" method, which interpolates from the nearer end.
    """
    place = (len(values) - 1) * (percentile / 100)
    below = min(math.floor(place), len(values) - 1)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    weight = place - below
    if weight >= 0.5:
        return high - (high - low) * (1 - weight)
    return low + (high - low) * weight


def is_checked(trial: MirroredTrial, step: int, warmup_steps: int, interval_steps: int) -> bool:
    """Return whether a pruner looks at this step: the first report in each interval."""
    if step < warmup_steps:
        return False
    start = (step - warmup_steps) // interval_steps * interval_steps + warmup_steps
    before = max((other for other in trial.intermediate_values if other < step), default=-1)
    return before < start


def best_value(values: Iterable[float], *, maximize: bool) -> float:
    """Return the best of the values that are not NaN; NaN when there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return max(known) if maximize else min(known)


@dataclass(frozen=True, slots=True)
class PrunerContext:
    """What a pruner must know of its study.

    Attributes:
        maximize: Direction of the (only) objective.
        epochs: The most steps a trial can take.
    """

    study_name: str
    maximize: bool
    epochs: int


PrunerFactory = Callable[[Mapping[str, Any], PrunerContext], Pruner]


def _none(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return NonePruner()


def _threshold(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return ThresholdPruner(**settings)


def _median(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return PercentilePruner(maximize=context.maximize, percentile=50.0, **settings)


def _percentile(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return PercentilePruner(maximize=context.maximize, **settings)


def _successive_halving(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return SuccessiveHalvingPruner(maximize=context.maximize, **settings)


def _hyperband(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return HyperbandPruner(
        maximize=context.maximize,
        study_name=context.study_name,
        max_resource=context.epochs,
        **settings,
    )


def _patience(settings: Mapping[str, Any], context: PrunerContext) -> Pruner:
    return PatiencePruner(maximize=context.maximize, **settings)


PRUNERS: dict[str, PrunerFactory] = {
    "none": _none,
    "median": _median,
    "percentile": _percentile,
    "successive_halving": _successive_halving,
    "hyperband": _hyperband,
    "patience": _patience,
    "threshold": _threshold,
}
"""Pruners by the name a definition gives; the settings are those of the catalogue."""
