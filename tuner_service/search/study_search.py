"""The search of one study, as a supervisor uses it: ask, tell, prune. Writes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tuner_service.definition import StudyDefinition, most_epochs, space_of
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, HistoryState, HistoryTrial
from tuner_service.search.installed import pruner_of, sampler_of
from tuner_service.search.pruners.registry import PrunerContext


class StudySearch:
    """The mirror of a study's trials, its sampler and its pruner."""

    def __init__(self, definition: StudyDefinition, study_name: str) -> None:
        self._space = space_of(definition)
        self._seed = definition.sampler.seed
        self._history = History(distributions(self._space))
        maximize = [objective.direction == "maximize" for objective in definition.objective]
        self._sampler = sampler_of(
            definition.sampler.type,
            self._space,
            seed=self._seed,
            maximize=maximize,
            settings=definition.sampler.settings,
        )
        context = PrunerContext(study_name, maximize[0], most_epochs(definition))
        self._pruner = pruner_of(definition.pruner.type, definition.pruner.settings, context)

    @property
    def last_trial_id(self) -> int:
        """The highest trial id merged; later ones are to be read."""
        return self._history.last_trial_id

    @property
    def unfinished(self) -> set[int]:
        """Ids of trials that may have changed since they were merged."""
        return self._history.unfinished

    @property
    def has_results(self) -> bool:
        """Whether a trial is known to have ended well, or to have reported."""
        return self._history.has_results

    def merge(self, trials: Iterable[HistoryTrial]) -> None:
        """Take in what the database has."""
        self._history.merge(trials)

    def ask(self, slot: int, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a slot's parameters; `fixed` values of an enqueued point stand."""
        params = self._sampler.ask(self._history, slot=slot, fixed=fixed or {})
        self._history.handed_out(params)
        return params

    def withdraw(self, params: Mapping[str, Any]) -> None:
        """Parameters that were asked for will not become a trial."""
        self._history.withdraw(params)

    def forget(self, trial_id: int) -> None:
        """What was told of a trial was not written (its lease is lost): it is to be read again."""
        self._history.forget(trial_id)

    def started(self, trial_id: int, params: Mapping[str, Any]) -> None:
        """A trial of these parameters runs."""
        self._history.start(trial_id, params)

    def report(self, trial_id: int, step: int, value: float) -> None:
        """A running trial reported an intermediate value."""
        self._history.report(trial_id, step, value)

    def finished(
        self,
        trial_id: int,
        state: HistoryState,
        values: Sequence[float] | None,
        infeasible: bool = False,
    ) -> None:
        """A trial ended."""
        self._history.finish(trial_id, state, values, violation=1.0 if infeasible else 0.0)

    def should_prune(self, trial_id: int) -> bool:
        """Return whether a running trial should stop, given its last report."""
        return self._pruner.should_prune(self._history, self._history[trial_id])
