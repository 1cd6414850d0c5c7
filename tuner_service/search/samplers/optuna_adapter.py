"""Optuna's own samplers, asked on an in-memory study that follows the mirror.

TPE for several objectives is asked this way, and what packages bring as Optuna samplers.

The in-memory study holds the mirror's trials under ids of its own. Every ask gets its own
generator from (study seed, slot number), so that workers need share no state. That the sampler's
generators can be replaced, and that a trial can be made to suggest by distribution, are details
of Optuna 5.0: another version is refused, so that an upgrade is a decision and not a surprise.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner_service.definition.space import Space
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, MirroredTrial

# Attributes that a sampler of Optuna leaves at a trial and does without: the mirror has none.
NEEDLESS_ATTRIBUTES = ("tpe:",)


class OptunaSampler:
    """Asks a sampler of Optuna for parameters.

    Args:
        sampler_for: A slot's number -> the sampler to ask, seeded for that slot.
    """

    def __init__(
        self,
        space: Space,
        *,
        maximize: Sequence[bool],
        sampler_for: Callable[[int], BaseSampler],
    ) -> None:
        if not optuna.__version__.startswith("5.0."):
            raise RuntimeError(f"Optuna 5.0 is needed here, but this is {optuna.__version__}")
        self._space = space
        self._by_name = distributions(space)
        self._sampler_for = sampler_for
        self._storage = InMemoryStorage()
        self._directions = [
            StudyDirection.MAXIMIZE if m else StudyDirection.MINIMIZE for m in maximize
        ]
        self._study = self._new_study()
        self._mine: dict[int, int] = {}  # the mirror's trial id -> the in-memory one, if RUNNING
        self._finished = 0
        self._generation = 0

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters for a slot, learning from the mirror's trials.

        Raises:
            RuntimeError: The sampler keeps its state in trials' attributes, which no mirror has: it
                would begin anew at every ask.
        """
        self._catch_up(history)
        temporary = [self._add_running(params) for params in history.pending.values()]
        self._study.sampler = self._sampler_for(slot)
        trial = self._study.ask()
        params: dict[str, Any] = {}
        for name, _ in self._space.parameters:
            if self._space.applies(name, params):
                params[name] = self._value(trial, name, fixed)
        self._refuse_kept_state(trial)
        for trial_id in [*temporary, trial._trial_id]:
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return params

    def _refuse_kept_state(self, trial: optuna.Trial) -> None:
        kept = [
            key
            for key in self._storage.get_trial(trial._trial_id).system_attrs
            if not key.startswith(NEEDLESS_ATTRIBUTES)
        ]
        kept += self._storage.get_study_system_attrs(self._study._study_id)
        if kept:
            sampler = type(self._study.sampler).__name__
            raise RuntimeError(f"{sampler} keeps its state in attributes of trials: {kept[0]}")

    def _value(self, trial: optuna.Trial, name: str, fixed: Mapping[str, Any]) -> Any:
        distribution = self._by_name[name]
        if name not in fixed:
            return trial._suggest(name, distribution)
        value = fixed[name]
        inner = distribution.to_internal_repr(value)
        self._storage.set_trial_param(trial._trial_id, name, inner, distribution)
        return value

    def _catch_up(self, history: History) -> None:
        if history.generation != self._generation:
            self._forget_all(history)
        for trial in history.finished[self._finished :]:
            running = self._mine.pop(trial.trial_id, None)
            if running is not None:
                self._storage.set_trial_state_values(running, TrialState.FAIL)
            self._study.add_trial(_frozen(trial, self._by_name))
        self._finished = len(history.finished)
        present = {trial.trial_id: trial for trial in history.running}
        for gone in self._mine.keys() - present.keys():
            self._storage.set_trial_state_values(self._mine.pop(gone), TrialState.FAIL)
        for trial_id, trial in present.items():
            if trial_id not in self._mine:
                self._mine[trial_id] = self._add_running(trial.params)

    def _forget_all(self, history: History) -> None:
        for trial in self._storage.get_all_trials(self._study._study_id, deepcopy=False):
            if not trial.state.is_finished():
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self._study = self._new_study()
        self._mine, self._finished, self._generation = {}, 0, history.generation

    def _new_study(self) -> optuna.Study:
        # Not `optuna.create_study`, which logs a line.
        study_id = self._storage.create_new_study(self._directions)
        name = self._storage.get_study_name_from_id(study_id)
        return optuna.Study(study_name=name, storage=self._storage)

    def _add_running(self, params: Mapping[str, Any]) -> int:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: self._by_name[name] for name in params},
        )
        return self._storage.create_new_trial(self._study._study_id, template_trial=trial)


def optuna_tpe(
    space: Space, *, seed: int, maximize: Sequence[bool], settings: Mapping[str, Any]
) -> OptunaSampler:
    """Return Optuna's TPE, with its generators started anew for each slot."""
    sampler = _tpe(seed, settings, group=space.conditional)

    def reseeded(slot: int) -> BaseSampler:
        _reseed(sampler, seed, slot)
        return sampler

    return OptunaSampler(space, maximize=maximize, sampler_for=reseeded)


def _tpe(seed: int, settings: Mapping[str, Any], *, group: bool) -> TPESampler:
    with warnings.catch_warnings():
        # Without `group`, conditional parameters fall out of the multivariate estimator.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(
            seed=seed,
            group=group,
            multivariate=True if group else None,
            constant_liar=True,
            n_startup_trials=settings["startup_trials"],
            n_ei_candidates=settings["candidates"],
        )


def _frozen(trial: MirroredTrial, by_name: Mapping[str, BaseDistribution]) -> FrozenTrial:
    violated = {"constraints:violation": trial.violation} if trial.violation > 0 else {}
    complete = trial.state == "COMPLETE"
    return create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=list(trial.values) if trial.values else None,
        params=dict(trial.params),
        distributions={name: by_name[name] for name in trial.params},
        intermediate_values=dict(trial.intermediate_values),
        system_attrs=violated,
    )


def _reseed(sampler: TPESampler, seed: int, slot: int) -> None:
    """Start the sampler's generators anew for one slot."""
    words = np.random.SeedSequence((seed, slot)).generate_state(2)
    sampler._rng = LazyRandomState(int(words[0]))
    sampler._random_sampler._rng = LazyRandomState(int(words[1]))
