"""What a search knows of its study: an in-memory mirror of the study's trials.

The lifecycle reads `HistoryTrial`s from the database and the supervisor merges them; what the
supervisor's own trials do is told to the mirror at once, before it is written. Samplers and
pruners read the mirror only, and write nothing.

Trials are ordered by Optuna's trial id, which is the order of their numbers too: ids and numbers
are taken under one lock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from optuna.distributions import BaseDistribution

Scalar = str | int | float | bool | None
HistoryState = Literal["RUNNING", "WAITING", "COMPLETE", "PRUNED", "FAIL"]

UNFINISHED: Final = frozenset({"RUNNING", "WAITING"})
USEFUL: Final = frozenset({"COMPLETE", "PRUNED"})

_AFTER_ALL_TRIALS: Final = 2**62


@dataclass(frozen=True, slots=True)
class HistoryTrial:
    """One trial as the database has it.

    Attributes:
        params: Values as users see them (choices, not indices).
        distributions: Optuna's distribution of each parameter, under the same names.
        values: One per objective for COMPLETE; may be there or None for PRUNED.
        constraints: By name; above 0 violates. A trial with such a one is infeasible.
        own: Whether it is one of our slots' attempts; False for a trial made by plain Optuna.
    """

    trial_id: int
    number: int
    state: HistoryState
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    values: Sequence[float] | None = None
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    own: bool = True


@dataclass(slots=True)
class MirroredTrial:
    """One trial in the mirror. `params` holds only what fits the study's search space.

    Attributes:
        violation: Sum of the constraints above 0; 0 for a feasible trial.
    """

    trial_id: int
    state: HistoryState
    params: dict[str, Any]
    values: tuple[float, ...] | None = None
    intermediate_values: dict[int, float] = field(default_factory=dict)
    violation: float = 0.0

    @property
    def last_step(self) -> int | None:
        """The highest step reported, or None."""
        return max(self.intermediate_values) if self.intermediate_values else None


def fitting_params(
    params: Mapping[str, Any], space: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """Return those parameters that `space` knows and whose values lie in its domains.

    A trial made by plain Optuna may have other parameters, other ranges or other choices. What
    does not fit is treated as if the trial had not had it.
    """
    return {name: value for name, value in params.items() if _fits(value, space.get(name))}


def _fits(value: object, distribution: BaseDistribution | None) -> bool:
    if distribution is None:
        return False
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


class History:
    """The mirror. Not thread-safe: one supervisor thread owns it.

    `finished` lists COMPLETE and PRUNED trials in the order in which they were learned of, and
    only grows; columns built from it remember how far they have read. When a finished trial must
    be taken back, `generation` rises and they start again.
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = dict(space)
        self._trials: dict[int, MirroredTrial] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._handed_out = 0
        self._unfinished: set[int] = set()
        self._last_trial_id = 0
        self.finished: list[MirroredTrial] = []
        self.generation = 0

    @property
    def last_trial_id(self) -> int:
        """The highest id read from the database; later ones are still to be read."""
        return self._last_trial_id

    @property
    def unfinished(self) -> set[int]:
        """Ids of trials that may still change, to be read again."""
        return set(self._unfinished)

    @property
    def running(self) -> list[MirroredTrial]:
        """RUNNING trials, this worker's and others', in order of their ids."""
        trials = (self._trials[trial_id] for trial_id in sorted(self._unfinished))
        return [trial for trial in trials if trial.state == "RUNNING"]

    @property
    def has_results(self) -> bool:
        """Whether a trial ended well, or has reported a value."""
        return bool(self.finished) or any(t.intermediate_values for t in self._trials.values())

    @property
    def pending(self) -> Mapping[int, Mapping[str, Any]]:
        """Parameters handed out whose trials are not created yet, oldest first.

        Their keys sort after every trial id and stay the same while they are pending.
        """
        return dict(self._pending)

    def __getitem__(self, trial_id: int) -> MirroredTrial:
        return self._trials[trial_id]

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._trials

    def __len__(self) -> int:
        return len(self._trials)

    def merge(self, trials: Iterable[HistoryTrial]) -> None:
        """Take in what the database has. Any order, any number of times."""
        for trial in trials:
            self._last_trial_id = max(self._last_trial_id, trial.trial_id)
            self._merge_one(trial)

    def handed_out(self, params: Mapping[str, Any]) -> None:
        """Remember parameters whose trial is about to be created."""
        self._pending[_AFTER_ALL_TRIALS + self._handed_out] = dict(params)
        self._handed_out += 1

    def withdraw(self, params: Mapping[str, Any]) -> None:
        """Forget handed-out parameters; nothing happens when they are not known."""
        wanted = dict(params)
        key = next((key for key, known in self._pending.items() if known == wanted), None)
        if key is not None:
            del self._pending[key]

    def start(self, trial_id: int, params: Mapping[str, Any]) -> None:
        """A trial was created (or is continued) by this worker."""
        self.withdraw(params)
        if trial_id not in self._trials:
            self._add(MirroredTrial(trial_id, "RUNNING", fitting_params(params, self._space)))

    def report(self, trial_id: int, step: int, value: float) -> None:
        """A running trial reported an intermediate value."""
        self._trials[trial_id].intermediate_values[step] = value

    def finish(
        self,
        trial_id: int,
        state: HistoryState,
        values: Sequence[float] | None,
        *,
        violation: float = 0.0,
    ) -> None:
        """A trial ended. A finished trial is immutable: telling it twice changes nothing."""
        trial = self._trials[trial_id]
        if trial.state not in UNFINISHED:
            return
        trial.state = state
        trial.values = None if values is None else tuple(values)
        trial.violation = violation
        self._unfinished.discard(trial_id)
        self._settle(trial)

    def forget(self, trial_id: int) -> None:
        """What was told of a trial did not reach the database: read it again."""
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        if trial.state in USEFUL:
            self.finished.remove(trial)
            self.generation += 1
        trial.state = "RUNNING"
        trial.values = None
        trial.violation = 0.0
        self._unfinished.add(trial_id)

    def _add(self, trial: MirroredTrial) -> None:
        self._trials[trial.trial_id] = trial
        if trial.state in UNFINISHED:
            self._unfinished.add(trial.trial_id)

    def _merge_one(self, stored: HistoryTrial) -> None:
        trial = self._trials.get(stored.trial_id)
        if trial is None:
            trial = MirroredTrial(stored.trial_id, "WAITING", {})
        elif trial.state not in UNFINISHED:
            return
        # This worker's own trials may be ahead of what was written: keep both.
        trial.params = {**fitting_params(stored.params, self._space), **trial.params}
        trial.intermediate_values = {**stored.intermediate_values, **trial.intermediate_values}
        self._add(trial)
        if stored.state in UNFINISHED:
            trial.state = stored.state
        else:
            self.finish(stored.trial_id, stored.state, stored.values, violation=_violation(stored))

    def _settle(self, trial: MirroredTrial) -> None:
        if trial.state in USEFUL:
            self.finished.append(trial)


def _violation(trial: HistoryTrial) -> float:
    return float(sum(value for value in trial.constraints.values() if value > 0))


class Reader:
    """Hands each newly finished trial of a history to a column store once.

    Args:
        restart: Empties the store; called first, and when a finished trial was taken back.
        add: Takes one finished trial.
    """

    def __init__(self, restart: Callable[[], None], add: Callable[[MirroredTrial], None]) -> None:
        self._restart = restart
        self._add = add
        self._seen = 0
        self._generation = -1

    def catch_up(self, history: History) -> None:
        """Read what is new; cost: the trials that finished since the last call."""
        if history.generation != self._generation:
            self._generation, self._seen = history.generation, 0
            self._restart()
        for trial in history.finished[self._seen :]:
            self._add(trial)
        self._seen = len(history.finished)
