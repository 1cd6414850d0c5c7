"""Successive halving and Hyperband: trials compete at rungs, and the best of each go on.

As all pruners (`pruners.py`), they decide from the mirror and write nothing.
"""

import binascii
import math
from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from functools import partial

from tuner_service.search.history import History, MirroredTrial, Reader


class SuccessiveHalvingPruner:
    """Asynchronous successive halving (ASHA).

    Rung k is completed by the first report that is not NaN at or after step
    `min_resource * reduction_factor ** (min_early_stopping_rate + k)`. A trial goes on past the
    rung if it is among the best 1/reduction_factor of the trials that have completed it.

    Rungs follow from the trials' intermediate values alone: Optuna keeps them in system
    attributes. Unlike in Optuna, FAIL trials do not compete: the next attempt carries the lost
    one's values on and would compete with itself. And a trial that reports no value for some steps,
    and so completes several rungs at once, competes in all of them. Cost: O(r + log n).

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, algorithm 2.

    Args:
        min_resource: Steps before the first rung (at `min_early_stopping_rate` 0).
        bootstrap_count: While no more trials than this have completed a rung, none is promoted.
        competes: Tells by trial id which trials take part; all unless given.
    """

    def __init__(
        self,
        *,
        maximize: bool,
        min_resource: int = 1,
        reduction_factor: int = 4,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
        competes: Callable[[int], bool] = lambda trial_id: True,
    ) -> None:
        self._maximize = maximize
        self._competes = competes
        self._min_resource = min_resource
        self._reduction_factor = reduction_factor
        self._min_early_stopping_rate = min_early_stopping_rate
        self._bootstrap_count = bootstrap_count
        self._done: list[array[float]] = []
        self._running: dict[int, list[tuple[int, float]]] = {}
        self._reader = Reader(self._restart, self._add)

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return whether the trial's last report completed a rung in which it is not promoted."""
        step = trial.last_step
        if step is None:
            return False
        self._reader.catch_up(history)
        completed = self._completed(trial)
        if step >= self._promotion_step(len(completed)):
            # Only NaN keeps a rung open that the step has reached.
            return True
        rungs = [rung for rung, (at_step, _) in enumerate(completed) if at_step == step]
        if not rungs:
            return False
        others = [
            self._completed(other)
            for other in history.running
            if other is not trial and self._competes(other.trial_id)
        ]
        return any(not self._is_promoted(rung, completed[rung][1], others) for rung in rungs)

    def _promotion_step(self, rung: int) -> int:
        power = self._min_early_stopping_rate + rung
        return int(self._min_resource * self._reduction_factor**power)

    def _is_promoted(
        self, rung: int, value: float, others: Sequence[Sequence[tuple[int, float]]]
    ) -> bool:
        done = self._done[rung] if rung < len(self._done) else array("d")
        competing = [rungs[rung][1] for rungs in others if rung < len(rungs)]
        count = len(done) + len(competing) + 1
        if count <= self._bootstrap_count:
            return False
        if self._maximize:
            better = len(done) - bisect_right(done, value) + sum(v > value for v in competing)
        else:
            better = bisect_left(done, value) + sum(v < value for v in competing)
        # The first few trials of a rung: the best one so far goes on.
        promotable = max(count // self._reduction_factor, 1)
        return better < promotable

    def _completed(self, trial: MirroredTrial) -> list[tuple[int, float]]:
        """Return (step, value) of each rung the trial has completed, remembered by trial."""
        completed = self._running.setdefault(trial.trial_id, [])
        last = trial.last_step
        if last is not None and last >= self._promotion_step(len(completed)):
            completed[:] = self._find_completed(trial)
        return completed

    def _find_completed(self, trial: MirroredTrial) -> list[tuple[int, float]]:
        completed: list[tuple[int, float]] = []
        for step, value in sorted(trial.intermediate_values.items()):
            while not math.isnan(value) and step >= self._promotion_step(len(completed)):
                completed.append((step, value))
        return completed

    def _restart(self) -> None:
        self._done, self._running = [], {}

    def _add(self, trial: MirroredTrial) -> None:
        self._running.pop(trial.trial_id, None)
        if not self._competes(trial.trial_id):
            return
        for rung, (_, value) in enumerate(self._find_completed(trial)):
            if rung == len(self._done):
                self._done.append(array("d"))
            insort(self._done[rung], value)


class HyperbandPruner:
    """Several brackets of successive halving, from eager to patient.

    A trial's bracket follows from the study's name and the trial's id. Unlike in Optuna, TPE
    learns from all brackets' trials, not from the asked trial's bracket only, and the maximum
    resource is the definition's number of epochs instead of a guess from the first trials.

    Source: Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization.
    """

    def __init__(
        self,
        *,
        maximize: bool,
        study_name: str,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        bootstrap_count: int = 0,
    ) -> None:
        self._study_name = study_name
        count = bracket_count(min_resource, max_resource, reduction_factor)
        self._budgets = [
            math.ceil(count * reduction_factor ** (count - 1 - bracket) / (count - bracket))
            for bracket in range(count)
        ]
        self._total_budget = sum(self._budgets)
        self._brackets = [
            SuccessiveHalvingPruner(
                maximize=maximize,
                min_resource=min_resource,
                reduction_factor=reduction_factor,
                min_early_stopping_rate=bracket,
                bootstrap_count=bootstrap_count,
                competes=partial(self._is_in, bracket),
            )
            for bracket in range(count)
        ]

    def bracket(self, trial_id: int) -> int:
        """Return the bracket of a trial, 0 being the most eager."""
        place = binascii.crc32(f"{self._study_name}_{trial_id}".encode()) % self._total_budget
        for bracket, budget in enumerate(self._budgets):
            place -= budget
            if place < 0:
                return bracket
        raise AssertionError("place < sum(budgets)")

    def should_prune(self, history: History, trial: MirroredTrial) -> bool:
        """Return what successive halving decides among the trials of the trial's bracket."""
        return self._brackets[self.bracket(trial.trial_id)].should_prune(history, trial)

    def _is_in(self, bracket: int, trial_id: int) -> bool:
        return self.bracket(trial_id) == bracket


def bracket_count(min_resource: int, max_resource: int, reduction_factor: int) -> int:
    """Return Hyperband's number of brackets, floor(log_eta(max / min)) + 1."""
    count = 1
    while min_resource * reduction_factor**count <= max_resource:
        count += 1
    return count
