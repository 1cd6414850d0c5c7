"""Our TPE as a sampler for any Optuna study: for scripts, and to hold it to Optuna's own tests.

The service does not use it: it asks on its mirror (`search.py`), without a study object.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.random import RandomState
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuner_service.search.samplers.tpe.trials import Trials, partition, rank


class ColumnTpeSampler(BaseSampler):
    """Proposes what `optuna.samplers.TPESampler` would, in a fraction of the time.

    One sampler is for one study. Several objectives are left to Optuna's sampler.

    Args:
        seed: None seeds from the operating system.
        group: Group conditional parameters by what goes together; else those that not every
            trial has are sampled alone.
    """

    def __init__(
        self,
        *,
        n_startup_trials: int = 10,
        n_ei_candidates: int = 24,
        seed: int | None = None,
        group: bool = False,
    ) -> None:
        self._startup_trials = n_startup_trials
        self._candidates = n_ei_candidates
        self._group = group
        self._lock = threading.RLock()  # `optimize(n_jobs=2)` asks from two threads
        self._rng = RandomState(seed)
        self._random = RandomSampler(seed=seed)
        self._stock = TPESampler(
            seed=seed, n_startup_trials=n_startup_trials, n_ei_candidates=n_ei_candidates
        )
        self._trials = Trials()
        self._whole_space = IntersectionSearchSpace(include_pruned=True)
        self._signatures: dict[frozenset[str], None] = {}
        self._latest: dict[str, BaseDistribution] = {}
        self._settled = 0

    def reseed_rng(self) -> None:
        """Seed anew from the operating system."""
        self._rng.seed()
        self._random.reseed_rng()
        self._stock.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that are sampled together."""
        if len(study.directions) > 1:
            return self._stock.infer_relative_search_space(study, trial)
        with self._lock:
            if self._group:
                self._catch_up(study, trial)
                return {name: space[name] for space in self._groups() for name in space}
            whole = self._whole_space.calculate(study)
        return {name: d for name, d in whole.items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return values for parameters that are sampled together."""
        if len(study.directions) > 1:
            return self._stock.sample_relative(study, trial, search_space)
        with self._lock:
            self._catch_up(study, trial)
            if not search_space or self._trials.finished < self._startup_trials:
                return {}
            groups = self._groups() if self._group else [search_space]
            params: dict[str, Any] = {}
            for group in groups:
                wanted = {name: search_space[name] for name in group if name in search_space}
                params.update(self._sample(wanted))
            return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for a parameter that is sampled alone."""
        if len(study.directions) > 1:
            return self._stock.sample_independent(study, trial, param_name, param_distribution)
        with self._lock:
            self._catch_up(study, trial)
            if self._trials.finished < self._startup_trials:
                return self._random.sample_independent(study, trial, param_name, param_distribution)
            return self._sample({param_name: param_distribution})[param_name]

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Do nothing; what a trial gave is read at the next ask."""

    def _sample(self, space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if not space:
            return {}
        proposal = self._trials.pair(space).propose(self._rng, self._candidates)
        return {name: proposal[name] for name in space}

    def _groups(self) -> Iterator[dict[str, BaseDistribution]]:
        for names in partition(iter(self._signatures)):
            group = {name: self._latest[name] for name in sorted(names)}
            yield {name: d for name, d in group.items() if not d.single()}

    def _catch_up(self, study: Study, asked: FrozenTrial) -> None:
        trials = study.get_trials(deepcopy=False)
        unsettled = False
        for trial in trials[self._settled :]:
            if not trial.state.is_finished():
                unsettled = True
            if not unsettled:
                self._settled += 1
            self._take(trial, study.directions[0], is_asked=trial.number == asked.number)

    def _take(self, trial: FrozenTrial, direction: StudyDirection, *, is_asked: bool) -> None:
        if trial.state == TrialState.RUNNING and not is_asked:
            self._trials.put_running(trial.number, dict(trial.params))
        elif trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._take_finished(trial, direction)
        else:
            self._trials.discard(trial.number)

    def _take_finished(self, trial: FrozenTrial, direction: StudyDirection) -> None:
        if self._trials.is_finished(trial.number):
            return
        complete = trial.state == TrialState.COMPLETE
        its_rank = rank(
            complete=complete,
            value=trial.value if complete else None,
            intermediate_values=trial.intermediate_values,
            violation=sum(value for value in trial.constraints.values() if value > 0),
            maximize=direction == StudyDirection.MAXIMIZE,
        )
        self._trials.put_finished(trial.number, trial.params, its_rank)
        self._signatures.setdefault(frozenset(trial.distributions))
        self._latest = {**trial.distributions, **self._latest}
