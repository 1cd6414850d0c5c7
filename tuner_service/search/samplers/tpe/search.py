"""TPE for one study, asked on its mirror."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from numpy.random import PCG64, RandomState, SeedSequence
from optuna.distributions import BaseDistribution

from tuner_service.definition.catalogue.entries import Draws
from tuner_service.definition.space import Space
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, MirroredTrial, Reader
from tuner_service.search.samplers.tpe.trials import Proposal, Trials, partition, rank
from tuner_service.search.samplers.uniform import draw

_STREAM: Final = 1
"""Keeps TPE's random numbers apart from those of the startup draws of the same slot."""


class TpeSearch:
    """Multivariate TPE with one objective; conditional parameters are grouped.

    The estimator is that of Optuna 5.0's `TPESampler(multivariate=True, constant_liar=True)`, with
    `group=True` for a space with conditions. What is asked of it differs: what a
    wide study draws beyond its first trials is spread evenly, and in a space without conditions a
    point that a trial has already is passed over while there are others.
    The draws of a slot come from (study seed, slot number).
    """

    def __init__(
        self, space: Space, *, seed: int, maximize: bool, startup_trials: int, candidates: int
    ) -> None:
        self._space = space
        self._by_name = distributions(space)
        self._searched = {n: d for n, d in sorted(self._by_name.items()) if not d.single()}
        self._seed = seed
        self._maximize = maximize
        self._startup_trials = startup_trials
        self._candidates = candidates
        self._trials = Trials()
        self._running: set[int] = set()
        self._signatures: dict[frozenset[str], int] = {}
        self._reader = Reader(self._restart, self._add)

    def ask(self, history: History, *, slot: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters for a slot, learning from the mirror's trials.

        Args:
            fixed: Values that stand, from an enqueued point; may be partial.
        """
        self._catch_up(history)
        if self._trials.finished < self._startup_trials:
            # A wide study asks more of them: those are spread evenly.
            draws: Draws = "even" if slot >= self._startup_trials else "independent"
            return draw(self._space, seed=self._seed, slot=slot, fixed=fixed, draws=draws)
        rng = RandomState(PCG64(SeedSequence((self._seed, slot, _STREAM))))
        proposals = self._proposals(rng)
        params: dict[str, Any] = {}
        for name, _ in self._space.parameters:
            if self._space.applies(name, params):
                params[name] = fixed[name] if name in fixed else self._value(name, proposals, rng)
        return params

    def _value(self, name: str, proposals: Mapping[str, Proposal], rng: RandomState) -> Any:
        distribution = self._by_name[name]
        if distribution.single():
            return distribution.to_external_repr(0.0)
        if name not in proposals:
            # No finished trial had it yet.
            return self._trials.pair({name: distribution}).propose(rng, self._candidates)[name]
        return proposals[name][name]

    def _proposals(self, rng: RandomState) -> dict[str, Proposal]:
        proposals: dict[str, Proposal] = {}
        for group in self._groups():
            proposal = self._trials.pair(group).propose(
                rng, self._candidates, unseen=not self._space.conditional
            )
            proposals.update(dict.fromkeys(group, proposal))
        return proposals

    def _groups(self) -> Iterator[dict[str, BaseDistribution]]:
        if not self._space.conditional:
            yield self._searched
            return
        # In the order of the trials, not of their arrival here, so that all workers agree.
        first_seen = sorted(self._signatures.items(), key=lambda item: item[1])
        for names in partition(signature for signature, _ in first_seen):
            yield {name: self._searched[name] for name in sorted(names)}

    def _catch_up(self, history: History) -> None:
        self._reader.catch_up(history)
        running: dict[int, Mapping[str, Any]] = {
            trial.trial_id: trial.params for trial in history.running
        }
        running.update(history.pending)
        for key in self._running - running.keys():
            # Finished trials were taken in above; what is left has failed or was withdrawn.
            if key not in history or history[key].state == "FAIL":
                self._trials.discard(key)
        for key, params in running.items():
            self._trials.put_running(key, params)
        self._running = set(running)

    def _restart(self) -> None:
        self._trials = Trials()
        self._running, self._signatures = set(), {}

    def _add(self, trial: MirroredTrial) -> None:
        its_rank = rank(
            complete=trial.state == "COMPLETE",
            value=trial.values[0] if trial.values else None,
            intermediate_values=trial.intermediate_values,
            violation=trial.violation,
            maximize=self._maximize,
        )
        self._trials.put_finished(trial.trial_id, trial.params, its_rank)
        if self._space.conditional and self._is_whole(trial.params):
            signature = frozenset(name for name in trial.params if name in self._searched)
            earliest = self._signatures.get(signature, trial.trial_id)
            self._signatures[signature] = min(earliest, trial.trial_id)

    def _is_whole(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial has just the parameters that apply to it, as ours have.

        Others feed the estimators, but must not tear apart what belongs together.
        """
        return self._space.active(params) == params.keys() & self._by_name.keys()
