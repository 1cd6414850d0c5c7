"""Asked with the same random numbers, our TPE proposes what Optuna's proposes, trial for trial."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from tests.unit.search.column_tpe import ColumnTpeSampler
from tests.unit.search.stock import stable_stock

__all__ = ["stable_stock"]

pytestmark = pytest.mark.usefixtures("stable_stock")


def flat(trial: optuna.Trial) -> float:
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam", "lion"])
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    units = trial.suggest_int("hidden_units", 32, 512, log=True)
    layers = trial.suggest_int("layers", 1, 6)
    dropout = trial.suggest_float("dropout", 0.0, 0.6, step=0.2)
    loss = (math.log(rate) + 5) ** 2 + abs(units - 100) / 100 + layers * dropout
    return loss + ["sgd", "adam", "lion"].index(optimizer)


def conditional(trial: optuna.Trial) -> float:
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "nesterov", "adam"])
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    loss = (math.log(rate) + 5) ** 2
    if optimizer == "adam":
        return loss + trial.suggest_float("beta1", 0.5, 0.99)
    loss += (trial.suggest_float("momentum", 0.1, 0.99) - 0.5) ** 2
    if optimizer == "nesterov":
        loss += trial.suggest_int("decay", 0, 5)
    return loss


def with_every_end(objective: Callable[[optuna.Trial], float]) -> Callable[[optuna.Trial], float]:
    """Let trials also be pruned at different steps, fail, or violate a constraint."""

    def run(trial: optuna.Trial) -> float:
        loss = objective(trial)
        for step in range(1 + trial.number % 4):
            trial.report(math.nan if trial.number % 13 == 1 else loss + 0.1 * step, step)
        if trial.number % 7 == 3:
            raise optuna.TrialPruned()
        if trial.number % 17 == 4:
            raise optuna.TrialPruned() if trial.number % 2 else ArithmeticError("failed")
        if trial.number % 11 == 5:
            trial.set_constraint("memory", 1.0 + loss)
        return loss

    return run


def trials_of(
    sampler: BaseSampler, objective: Callable[[optuna.Trial], float], direction: str, count: int
) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.optimize(objective, n_trials=count, catch=ArithmeticError)
    return study.get_trials(deepcopy=False)


def stock(**options: Any) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(**options)


def assert_same_params(ours: list[FrozenTrial], theirs: list[FrozenTrial]) -> None:
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert own.params.keys() == other.params.keys(), own.number
        for name, value in other.params.items():
            if isinstance(value, float):
                np.testing.assert_allclose(own.params[name], value, rtol=1e-9)
            else:
                assert own.params[name] == value, (own.number, name)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(("objective", "group"), [(flat, False), (conditional, True)])
def test_a_study_proceeds_as_optunas(
    objective: Callable[[optuna.Trial], float], group: bool, direction: str
) -> None:
    run = with_every_end(objective)
    ours = trials_of(ColumnTpeSampler(seed=3, group=group), run, direction, 130)
    theirs = trials_of(stock(seed=3, group=group), run, direction, 130)
    assert {trial.state for trial in ours} == {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    assert_same_params(ours, theirs)


def test_conditional_parameters_without_groups_proceed_as_optunas() -> None:
    ours = trials_of(ColumnTpeSampler(seed=5), conditional, "minimize", 60)
    theirs = trials_of(stock(seed=5), conditional, "minimize", 60)
    assert_same_params(ours, theirs)


@pytest.mark.parametrize("width", [4, 16])
def test_running_trials_count_as_optunas_constant_liar(width: int) -> None:
    runs = []
    for sampler in (ColumnTpeSampler(seed=1), stock(seed=1)):
        study = optuna.create_study(sampler=sampler)
        open_trials: list[optuna.Trial] = []
        for turn in range(120):
            trial = study.ask()
            open_trials.append(trial)
            trial.set_user_attr("loss", flat(trial))
            if len(open_trials) == width:
                done = open_trials.pop((turn * 7) % width)
                study.tell(done, done.user_attrs["loss"])
        runs.append(study.get_trials(deepcopy=False))
    assert_same_params(*runs)
