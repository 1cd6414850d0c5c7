"""What a worker keeps of each study it works on: definition, sampler's mirror, file places."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tuner_service.definition import StudyDefinition, parallel_trials, resolve, resolve_user_loop
from tuner_service.errors import TunerError
from tuner_service.lifecycle.messages import Lease, StudyWork
from tuner_service.search import StudySearch
from tuner_service.search.samplers.uniform import spread_points
from workers.supervisor.store import SlotStore

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25

# What a definition or a sampler that is wrong for its study may raise. It fails the slot, so that
# one study cannot stop a worker that others need.
STUDY_ERRORS = (TunerError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)


@dataclass(slots=True)
class ActiveStudy:
    """A study on this worker.

    Attributes:
        one_at_a_time: Its trials run one after the other, whichever worker has them.
        seen_at: When its search was last brought up to date with other workers' trials.
    """

    work: StudyWork
    definition: StudyDefinition
    search: StudySearch
    one_at_a_time: bool = False
    seen_at: float = field(default=float("-inf"))

    @classmethod
    def open(cls, work: StudyWork) -> "ActiveStudy":
        """Read the stored definition, which was checked when it was submitted."""
        definition = StudyDefinition.model_validate(work.definition)
        one_at_a_time = parallel_trials(definition) == 1
        return cls(work, definition, StudySearch(definition, work.name), one_at_a_time)

    @property
    def prunes(self) -> bool:
        """Whether a pruner looks at the study's reports."""
        return self.definition.pruner.entry.prunes

    @property
    def trial_timeout(self) -> float | None:
        """Seconds one trial may train; None without a limit."""
        return self.definition.budget.trial_timeout

    @property
    def keep_models(self) -> int:
        """How many of the best trials keep their weights."""
        return self.definition.training.keep_models

    def refresh(self, store: SlotStore, now: float) -> None:
        """Merge what other workers did, at most a few times a second.

        With one trial at a time it is done for every ask: the last result may be another
        worker's, and the same seed must give the same study under any number of workers.
        """
        if not self.one_at_a_time and now - self.seen_at < _REFRESH_SECONDS:
            return
        self.search.merge(
            store.history(
                self.work.study_id,
                after_trial_id=self.search.last_trial_id,
                unfinished=self.search.unfinished,
            )
        )
        self.seen_at = now

    def ask(self, lease: Lease) -> dict[str, Any]:
        """Return the parameters of a slot that has none yet."""
        return dict(self.search.ask(lease.number, lease.enqueued))

    def spec(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the training instructions for a trial of these parameters."""
        if self.definition.is_user_loop:
            return resolve_user_loop(self.definition, parameters).model_dump(mode="json")
        return resolve(self.definition, parameters).model_dump(mode="json")

    def probe_specs(self, count: int) -> list[dict[str, Any]]:
        """Return the training instructions of up to `count` points all over the search space.

        Empty where the study needs no probe, as it has results, or where no points can be had.
        """
        if self.search.has_results:
            return []
        try:
            return [self.spec(point) for point in spread_points(self.definition, count)]
        except STUDY_ERRORS:
            logger.exception("study %s: no points of its search space to try", self.work.name)
            return []


class Studies:
    """The studies this worker knows, the least lately used of them forgotten."""

    def __init__(self, open_study: Callable[[StudyWork], ActiveStudy], *, keep: int = 32) -> None:
        self._open = open_study
        self._keep = keep
        self._studies: dict[int, ActiveStudy] = {}

    def get(self, work: StudyWork) -> ActiveStudy:
        """Return the study, opened at the first sight of it."""
        study = self._studies.pop(work.study_id, None)
        if study is None or study.work.definition != work.definition:
            study = self._open(work)
        study.work = work
        self._studies[work.study_id] = study
        while len(self._studies) > self._keep:
            self._studies.pop(next(iter(self._studies)))
        return study
