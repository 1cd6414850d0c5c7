"""The division into good and other trials, and into groups of parameters, is Optuna's."""

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner_service.search.samplers.tpe.trials import Trials, partition, rank

VALUE = st.one_of(st.integers(0, 5).map(float), st.floats(-1e3, 1e3), st.just(math.inf))
X = FloatDistribution(0, 1)


@st.composite
def frozen(draw: st.DrawFn) -> FrozenTrial:
    state = draw(st.sampled_from([TrialState.COMPLETE] * 3 + [TrialState.PRUNED] * 2))
    complete = state == TrialState.COMPLETE
    step_value = st.one_of(VALUE, st.just(math.nan))
    steps = draw(st.dictionaries(st.integers(1, 6), step_value, max_size=3))
    constraints = draw(st.sampled_from([{}] * 4 + [{"a": 1.0}, {"a": 2.5, "b": -1.0}, {"a": -1.0}]))
    return create_trial(
        state=state,
        value=draw(VALUE) if complete else None,
        params={"x": 0.5},
        distributions={"x": X},
        intermediate_values=steps,
        constraints=constraints or None,
    )


@pytest.mark.parametrize("maximize", [False, True])
@settings(max_examples=150, deadline=None)
@given(st.lists(frozen(), max_size=60), st.randoms(use_true_random=False))
def test_the_same_trials_are_below(
    maximize: bool, their_trials: list[FrozenTrial], random: object
) -> None:
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    study.add_trials(their_trials)
    numbered = study.get_trials(deepcopy=False)
    count = default_gamma(len(numbered))
    below, _ = _split_trials(study, numbered, count)

    trials = Trials()
    arriving = list(numbered)
    random.shuffle(arriving)  # type: ignore[attr-defined]
    for trial in arriving:
        complete = trial.state == TrialState.COMPLETE
        its_rank = rank(
            complete=complete,
            value=trial.value if complete else None,
            intermediate_values=trial.intermediate_values,
            violation=sum(v for v in trial.constraints.values() if v > 0),
            maximize=maximize,
        )
        if trial.number % 3 == 0:
            trials.put_running(trial.number, {"x": 0.5})
        trials.put_finished(trial.number, {"x": 0.5}, its_rank)
        if trial.number % 4 == 0:
            trials.pair({"x": X})  # the division changes under way
    trials.pair({"x": X})
    assert trials.below == {trial.number for trial in below}


def test_running_trials_are_above_and_withdrawn_ones_nowhere() -> None:
    trials = Trials()
    for key in range(20):
        trials.put_finished(key, {"x": key / 20}, (0, float(key), 0.0))
    trials.put_running(99, {"x": 0.01})
    pair = trials.pair({"x": X})
    assert (len(pair.below), len(pair.above)) == (2, 19)
    trials.discard(99)
    trials.discard(0)
    trials.discard(1234)
    pair = trials.pair({"x": X})
    assert (len(pair.below), len(pair.above)) == (2, 17)
    assert trials.finished == 19
    assert trials.below == {1, 2}


def test_a_trial_without_one_of_the_parameters_counts_in_the_division_only() -> None:
    trials = Trials()
    for key in range(20):
        params = {"x": 0.5} if key else {"y": 0.5}
        trials.put_finished(key, params, (0, float(key), 0.0))
    pair = trials.pair({"x": X})
    assert trials.below == {0, 1}
    assert (len(pair.below), len(pair.above)) == (1, 18)


SIGNATURES = st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), max_size=8)


@settings(max_examples=200, deadline=None)
@given(SIGNATURES)
def test_groups_are_optunas(signatures: list[frozenset[str]]) -> None:
    group = _SearchSpaceGroup()
    for signature in signatures:
        group.add_distributions(dict.fromkeys(signature, X))
    expected = [frozenset(space) for space in group.search_spaces]
    assert partition(iter(signatures)) == expected
