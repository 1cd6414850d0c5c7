"""Each pruner decides as Optuna's of the same name, over random interleaved trials."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.trial import TrialState

from tuner_service.search.history import History, HistoryTrial
from tuner_service.search.pruners import registry as ours
from tuner_service.search.pruners.halving import SuccessiveHalvingPruner as Halving
from tuner_service.search.pruners.halving import bracket_count
from tuner_service.search.pruners.registry import PRUNERS, Pruner, PrunerContext

NAN = math.nan
STUDY = "a-study"

VALUES = st.one_of(
    st.integers(0, 6).map(float),  # ties
    st.floats(-5, 5),
    st.sampled_from([NAN, NAN, math.inf, -math.inf]),
)


@dataclass(frozen=True)
class Event:
    """One report of the trial in a lane; `skip` steps are not reported before it."""

    lane: int
    value: float
    ends: bool
    skip: int


def events(*, skips: bool) -> st.SearchStrategy[list[Event]]:
    return st.lists(
        st.builds(
            Event,
            lane=st.integers(0, 3),
            value=VALUES,
            ends=st.sampled_from([False] * 5 + [True]),
            skip=st.sampled_from([0] * 6 + [1, 4]) if skips else st.just(0),
        ),
        min_size=20,
        max_size=150,
    )


class Race:
    """The same trials in an Optuna study and in a mirror; decisions must agree at each report."""

    def __init__(self, reference: BasePruner, pruner: Pruner, *, maximize: bool) -> None:
        self.study = optuna.create_study(
            study_name=STUDY,
            pruner=reference,
            direction="maximize" if maximize else "minimize",
        )
        self.pruner = pruner
        self.history = History({})
        self.lanes: dict[int, optuna.Trial] = {}
        self.steps: dict[int, int] = {}
        self.decisions: list[bool] = []

    def run(self, events: Sequence[Event]) -> list[bool]:
        for event in events:
            self._report(event)
        return self.decisions

    def _report(self, event: Event) -> None:
        if event.lane not in self.lanes:
            trial = self.lanes[event.lane] = self.study.ask()
            self.steps[event.lane] = 0
            self.history.start(trial.number, {})
        trial = self.lanes[event.lane]
        step = self.steps[event.lane] = self.steps[event.lane] + 1 + event.skip
        trial.report(event.value, step)
        self.history.report(trial.number, step, event.value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's about all-NaN slices
            expected = trial.should_prune()
        decided = self.pruner.should_prune(self.history, self.history[trial.number])
        assert decided == expected
        self.decisions.append(decided)
        if decided:
            self._end(event.lane, TrialState.PRUNED, None)
        elif event.ends:
            value = 1.0 if math.isnan(event.value) else event.value
            self._end(event.lane, TrialState.COMPLETE, value)

    def _end(self, lane: int, state: TrialState, value: float | None) -> None:
        trial = self.lanes.pop(lane)
        self.study.tell(trial, value, state=state)
        name: Any = state.name
        self.history.finish(trial.number, name, None if value is None else (value,))


SETTINGS: list[tuple[str, Callable[[], BasePruner], dict[str, Any]]] = [
    ("none", NopPruner, {}),
    (
        "median",
        lambda: MedianPruner(n_startup_trials=2, n_warmup_steps=2),
        {"startup_trials": 2, "warmup_steps": 2},
    ),
    (
        "median",
        lambda: MedianPruner(n_startup_trials=0, interval_steps=3, n_min_trials=3),
        {"startup_trials": 0, "interval_steps": 3, "min_trials": 3},
    ),
    (
        "percentile",
        lambda: PercentilePruner(25.0, n_startup_trials=1),
        {"percentile": 25.0, "startup_trials": 1},
    ),
    (
        "percentile",
        lambda: PercentilePruner(80.0, n_startup_trials=1, n_warmup_steps=1, interval_steps=2),
        {"percentile": 80.0, "startup_trials": 1, "warmup_steps": 1, "interval_steps": 2},
    ),
    ("successive_halving", lambda: SuccessiveHalvingPruner(1), {"min_resource": 1}),
    (
        "successive_halving",
        lambda: SuccessiveHalvingPruner(2, 2, 1),
        {"min_resource": 2, "reduction_factor": 2, "min_early_stopping_rate": 1},
    ),
    (
        "successive_halving",
        lambda: SuccessiveHalvingPruner(1, 2, 0, 2),
        {"min_resource": 1, "reduction_factor": 2, "bootstrap_count": 2},
    ),
    ("hyperband", lambda: HyperbandPruner(1, 20, 3), {"min_resource": 1}),
    (
        "hyperband",
        lambda: HyperbandPruner(1, 20, 2, 1),
        {"min_resource": 1, "reduction_factor": 2, "bootstrap_count": 1},
    ),
    ("patience", lambda: _patient(3, 0.5), {"patience": 3, "min_delta": 0.5}),
    ("patience", lambda: _patient(0, 0.0), {"patience": 0}),
    (
        "threshold",
        lambda: ThresholdPruner(-1.0, 4.0, n_warmup_steps=2, interval_steps=2),
        {"lower": -1.0, "upper": 4.0, "warmup_steps": 2, "interval_steps": 2},
    ),
    ("threshold", lambda: ThresholdPruner(upper=3.0), {"upper": 3.0, "lower": None}),
]


def _patient(patience: int, min_delta: float) -> BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PatientPruner(None, patience, min_delta)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("name", "reference", "options"), SETTINGS)
def test_decisions_are_optunas(
    name: str, reference: Callable[[], BasePruner], options: dict[str, Any], maximize: bool
) -> None:
    pruned: list[bool] = []

    # With steps left out, a trial may complete several rungs at once, where ours differs.
    @settings(max_examples=25, deadline=None)
    @given(events(skips=name not in ("successive_halving", "hyperband")))
    def race(script: list[Event]) -> None:
        pruner = PRUNERS[name](options, PrunerContext(STUDY, maximize, epochs=20))
        pruned.extend(Race(reference(), pruner, maximize=maximize).run(script))

    race()
    assert any(pruned) == (name != "none")
    assert not all(pruned)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=60),
    st.one_of(st.sampled_from([0.0, 25.0, 50.0, 100.0]), st.floats(0, 100)),
)
def test_percentiles_are_numpys_to_the_last_bit(values: list[float], percentile: float) -> None:
    with np.errstate(all="ignore"):
        expected = float(np.percentile(np.array(values), percentile))
    found = ours.sorted_percentile(sorted(values), percentile)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize(
    ("minimum", "maximum", "factor", "count"),
    [(1, 1, 3, 1), (1, 2, 3, 1), (1, 3, 3, 2), (1, 243, 3, 6), (2, 17, 2, 4), (5, 3, 3, 1)],
)
def test_bracket_count_is_exact(minimum: int, maximum: int, factor: int, count: int) -> None:
    # floor(log(243, 3)) is 4 in floating point.
    assert bracket_count(minimum, maximum, factor) == count


def halving() -> Pruner:
    return Halving(maximize=False, min_resource=2, reduction_factor=2)


def test_another_worker_that_only_read_the_values_decides_the_same() -> None:
    told, read = History({}), History({})
    first, second = halving(), halving()
    values = np.random.default_rng(0).random((40, 6)).round(1)
    for number, curve in enumerate(values):
        told.start(number, {})
        for step, value in enumerate(curve, start=1):
            told.report(number, step, float(value))
            copy = read_like(told, number)
            read.merge([copy])
            decided = first.should_prune(told, told[number])
            assert second.should_prune(read, read[number]) == decided
            assert halving().should_prune(read, read[number]) == decided
            if decided:
                break
        told.finish(number, "PRUNED" if decided else "COMPLETE", (float(curve[-1]),))
        read.merge([read_like(told, number)])


def read_like(history: History, number: int) -> Any:
    trial = history[number]
    return HistoryTrial(
        trial_id=number,
        number=number,
        state=trial.state,
        params={},
        distributions={},
        values=trial.values,
        intermediate_values=dict(trial.intermediate_values),
    )


def test_a_lost_attempt_does_not_compete_with_its_own_retry() -> None:
    history, pruner = History({}), halving()
    for number in (0, 1):
        history.start(number, {})
        history.report(number, 2, 0.1)
        if number == 0:
            assert not pruner.should_prune(history, history[0])
            history.finish(0, "FAIL", None)
    history.report(1, 2, 0.2)
    # Beside the failed 0.1, it would be the worse half.
    assert not pruner.should_prune(history, history[1])


def test_a_rung_is_decided_once() -> None:
    history, pruner = History({}), halving()
    history.start(0, {})
    history.report(0, 2, 0.5)
    assert not pruner.should_prune(history, history[0])
    for number in range(1, 6):
        history.start(number, {})
        history.report(number, 2, 0.1)
        pruner.should_prune(history, history[number])
    history.report(0, 3, 0.5)
    assert not pruner.should_prune(history, history[0])
    history.report(0, 4, 0.5)
    assert not pruner.should_prune(history, history[0])  # the first to come so far


def test_a_result_that_was_taken_back_no_longer_counts() -> None:
    history = History({})
    pruner = ours.PercentilePruner(maximize=False, percentile=50.0, startup_trials=1)
    history.start(0, {})
    history.report(0, 1, 0.1)
    history.finish(0, "COMPLETE", (0.1,))
    history.start(1, {})
    history.report(1, 1, 0.5)
    assert pruner.should_prune(history, history[1])
    history.forget(0)
    assert not pruner.should_prune(history, history[1])
