"""Optuna's own tests of samplers, passed by ours."""

import warnings
from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from tests.unit.search.column_tpe import ColumnTpeSampler


class TestColumnTpe(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: ColumnTpeSampler(n_startup_trials=0)


class TestColumnTpeAfterRandomStart(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    # Optuna's cases of relative sampling want it from the second trial on.
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return ColumnTpeSampler


class TestColumnTpeInGroups(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: ColumnTpeSampler(n_startup_trials=0, group=True)


def test_reseeding_changes_what_is_proposed() -> None:
    proposals = set()
    for _ in range(2):
        sampler = ColumnTpeSampler(seed=0, n_startup_trials=0)
        sampler.reseed_rng()
        study = optuna.create_study(sampler=sampler)
        study.add_trial(
            optuna.create_trial(
                params={"x": 0.5},
                distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
                value=1.0,
            )
        )
        proposals.add(study.ask().suggest_float("x", 0, 1))
    assert len(proposals) == 2


def test_several_objectives_are_left_to_optuna() -> None:
    runs = []
    for sampler in (ColumnTpeSampler(seed=0), optuna.samplers.TPESampler(seed=0)):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.params["x"] ** 2), 30)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]
