"""The search of a study as the supervisor uses it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tests.unit.definition.spaces import spaces
from tests.unit.search.builders import PARAMETERS, stored, study
from tuner_service.definition import StudyDefinition, space_of
from tuner_service.definition.space import Space, contains
from tuner_service.search import StudySearch
from tuner_service.search.distributions import distributions
from tuner_service.search.history import History, HistoryTrial
from tuner_service.search.samplers.tpe.search import TpeSearch
from tuner_service.search.samplers.uniform import draw

FLAT = {name: PARAMETERS[name] for name in ("learning_rate", "hidden_units")}


def loss(params: Mapping[str, Any]) -> float:
    """Return a cheap loss: learning rate 1e-3, and momentum 0.9 with sgd, are best."""
    value = (math.log10(params["learning_rate"]) + 3) ** 2 + params["hidden_units"] / 1000
    if "optimizer" in params:
        value += {"sgd": 0.0, "nesterov": 0.3, "adam": 0.6}[params["optimizer"]]
    return value + 2 * abs(params.get("momentum", 0.0) - 0.9)


class Worker:
    """A supervisor's view of a study: it merges what is stored, asks, tells and stores."""

    def __init__(self, definition: StudyDefinition, database: dict[int, HistoryTrial]) -> None:
        self.search = StudySearch(definition, definition.name)
        self.database = database
        self.distributions = distributions(space_of(definition))

    def refresh(self) -> None:
        unread = [
            trial
            for trial_id, trial in self.database.items()
            if trial_id > self.search.last_trial_id or trial_id in self.search.unfinished
        ]
        self.search.merge(unread)

    def run(self, slot: int, fixed: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.refresh()
        params = self.search.ask(slot, fixed)
        trial_id = len(self.database) + 1
        self.search.started(trial_id, params)
        value = loss(params)
        self.search.report(trial_id, 1, value)
        self.search.finished(trial_id, "COMPLETE", (value,), infeasible=False)
        self.database[trial_id] = stored(
            trial_id,
            params,
            distributions=self.distributions,
            value=value,
            intermediate_values={1: value},
        )
        return params


def minimizing(**changes: Any) -> StudyDefinition:
    objective = {"metric": "val_loss", "direction": "minimize"}
    return study(objective=objective, **changes)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("parameters", [FLAT, PARAMETERS], ids=["flat", "conditional"])
def test_one_trial_at_a_time_reproduces_under_any_number_of_workers(
    workers: int, parameters: Mapping[str, Any]
) -> None:
    definition = minimizing(parameters=parameters, sampler={"type": "tpe", "seed": 9})
    alone = Worker(definition, {})
    expected = [alone.run(slot) for slot in range(60)]
    database: dict[int, HistoryTrial] = {}
    team = [Worker(definition, database) for _ in range(workers)]
    turns = np.random.default_rng(0).integers(0, workers, 60)
    assert [team[turn].run(slot) for slot, turn in enumerate(turns)] == expected


def test_a_worker_that_joins_late_proposes_the_same() -> None:
    definition = minimizing(sampler={"type": "tpe", "seed": 2})
    first = Worker(definition, {})
    for slot in range(40):
        first.run(slot)
    late = Worker(definition, first.database)
    late.refresh()
    for slot in (40, 41, 1000):
        proposals = [worker.search.ask(slot) for worker in (first, late)]
        assert proposals[0] == proposals[1]


def test_the_seed_matters_also_after_the_random_start() -> None:
    runs = []
    for seed in (1, 2):
        worker = Worker(minimizing(sampler={"type": "tpe", "seed": seed}), {})
        runs.append([worker.run(slot, {"learning_rate": 1e-3}) for slot in range(15)])
    assert all(one != other for one, other in zip(*runs, strict=True))


@settings(max_examples=40, deadline=None)
@given(spaces(), st.integers(0, 2**31 - 1))
def test_proposals_have_what_applies_and_lie_in_the_domain(space: Space, seed: int) -> None:
    search = TpeSearch(space, seed=seed, maximize=False, startup_trials=3, candidates=6)
    by_name = distributions(space)
    history = History(by_name)
    for slot in range(15):
        params = search.ask(history, slot=slot, fixed={})
        assert params.keys() == space.active(params)
        for name, parameter in space.parameters:
            assert name not in params or contains(parameter, params[name])
            assert not isinstance(params.get(name), np.generic)
        history.merge([stored(slot + 1, params, distributions=by_name, value=float(slot % 4))])


def asked_many(space: Space, count: int, running: int) -> list[tuple[Any, ...]]:
    """Ask while `running` trials are open, and return the points."""
    search = TpeSearch(space, seed=1, maximize=False, startup_trials=4, candidates=24)
    history, points = History(distributions(space)), []
    for slot in range(count):
        params = search.ask(history, slot=slot, fixed={})
        history.start(slot + 1, params)
        points.append(tuple(params.values()))
        done = slot + 1 - running
        if done > 0:
            history.finish(done, "COMPLETE", (float(sum(points[done - 1][:2])),))
    return points


@pytest.mark.parametrize("running", [0, 8])
def test_no_point_is_tried_twice_while_there_are_others(running: int) -> None:
    ours = space_of(
        minimizing(
            parameters={
                "batch_size": {"type": "int", "low": 1, "high": 6},
                "hidden_units": {"type": "int", "low": 1, "high": 6},
            }
        )
    )
    startup = 4 + running
    points = asked_many(ours, 20 + startup, running)
    assert len(set(points[startup:])) == 20
    assert not set(points[:startup]) & set(points[startup:])


def test_what_a_wide_study_draws_beyond_its_first_trials_is_spread_evenly() -> None:
    share = {"label_smoothing": {"type": "float", "low": 0, "high": 0.5}}
    ours = space_of(minimizing(parameters=share))
    drawn = [point[0] for point in asked_many(ours, 32, 40)]
    assert drawn[:4] == [draw(ours, seed=1, slot=slot)["label_smoothing"] for slot in range(4)]
    assert sorted(int(32 * value) for value in drawn[16:]) == list(range(16))


def test_a_space_that_is_used_up_is_asked_on() -> None:
    two = {"batch_size": {"type": "categorical", "choices": [16, 32]}}
    points = asked_many(space_of(minimizing(parameters=two)), 12, 0)
    assert len(points) == 12
    assert set(points) == {(16,), (32,)}


def test_an_enqueued_points_values_stand_and_decide_what_applies() -> None:
    worker = Worker(minimizing(), {})
    for slot in range(30):
        worker.run(slot)
    adam = worker.search.ask(30, {"optimizer": "adam", "learning_rate": 0.05})
    assert (adam["optimizer"], adam["learning_rate"]) == ("adam", 0.05)
    assert adam.keys() == {"optimizer", "learning_rate", "hidden_units"}
    sgd = worker.search.ask(31, {"optimizer": "sgd", "momentum": 0.25})
    assert (sgd["optimizer"], sgd["momentum"]) == ("sgd", 0.25)
    assert 32 <= sgd["hidden_units"] <= 512


def test_a_parameter_that_no_trial_had_yet_is_sampled_alone() -> None:
    worker = Worker(minimizing(), {})
    for slot in range(20):
        worker.run(slot, {"optimizer": "adam"})
    momenta = {worker.search.ask(slot, {"optimizer": "sgd"})["momentum"] for slot in range(20, 30)}
    assert len(momenta) == 10
    assert all(0.1 <= momentum <= 0.99 for momentum in momenta)


def told(**changes: Any) -> Worker:
    worker = Worker(minimizing(parameters=FLAT, **changes), {})
    for slot in range(30):
        worker.run(slot)
    return worker


def test_handed_out_and_running_trials_are_kept_away_from() -> None:
    alone, crowded, others = told(), told(), told()
    expected = alone.search.ask(99)
    for _ in range(8):
        crowded.search.ask(50, expected)
    by_name = others.distributions
    others.search.merge(
        [stored(100 + i, expected, "RUNNING", distributions=by_name) for i in range(8)]
    )
    assert crowded.search.ask(99) != expected
    # A handed-out trial weighs what a running one does.
    assert others.search.ask(99) == told_with_pending(expected).search.ask(99)


def told_with_pending(params: Mapping[str, Any]) -> Worker:
    worker = told()
    for _ in range(8):
        worker.search.ask(50, params)
    return worker


def test_what_was_withdrawn_or_failed_leaves_no_trace() -> None:
    untouched, worker = told(), told()
    asked = [worker.search.ask(slot) for slot in range(60, 64)]
    worker.search.started(200, asked.pop(2))
    for params in asked:
        worker.search.withdraw(params)
    worker.search.finished(200, "FAIL", None)
    assert worker.search.ask(99) == untouched.search.ask(99)


def test_a_trial_started_as_asked_is_no_longer_pending() -> None:
    worker, other = told(), told()
    params = worker.search.ask(60)
    worker.search.started(200, params)
    by_name = other.distributions
    other.search.merge([stored(200, params, "RUNNING", distributions=by_name)])
    assert worker.search.ask(99) == other.search.ask(99)


def test_infeasible_trials_come_last_whatever_their_value() -> None:
    worker = Worker(minimizing(parameters=FLAT), {})
    by_name = worker.distributions
    rates = np.geomspace(1e-5, 1e-1, 60)
    for trial_id, rate in enumerate(rates, start=1):
        params = {"learning_rate": float(rate), "hidden_units": 64}
        worker.search.started(trial_id, params)
        diverged = rate > 1e-3
        worker.search.report(trial_id, 1, 0.0 if diverged else 1.0)
        state = "PRUNED" if diverged else "COMPLETE"
        values = None if diverged else (1.0,)
        worker.search.finished(trial_id, state, values, infeasible=diverged)
        assert params.keys() <= by_name.keys()
    asked = [worker.search.ask(slot)["learning_rate"] for slot in range(100, 120)]
    assert np.median(asked) < 1e-3


def test_trials_of_plain_optuna_feed_the_search() -> None:
    worker = Worker(minimizing(parameters=FLAT), {})
    good = [
        stored(
            trial_id,
            {"learning_rate": 10 ** (-1 - trial_id / 15), "hidden_units": 40},
            distributions=worker.distributions,
            value=abs(trial_id - 30.0),  # best at 1e-3
            own=False,
        )
        for trial_id in range(1, 61)
    ]
    worker.search.merge(good)
    asked = [math.log10(worker.search.ask(slot)["learning_rate"]) for slot in range(30)]
    assert abs(np.median(asked) + 3) < 0.5


def test_trials_that_do_not_fit_do_no_harm() -> None:
    worker = Worker(minimizing(), {})
    foreign = {
        "optimizer": CategoricalDistribution(("lbfgs", "sgd")),
        "learning_rate": FloatDistribution(0, 100),
        "other": FloatDistribution(0, 1),
    }
    worker.search.merge(
        [
            stored(
                trial_id,
                {"optimizer": ("lbfgs", "sgd")[trial_id % 2], "learning_rate": 50.0, "other": 0.5},
                distributions=foreign,
                value=-1.0,
                own=False,
            )
            for trial_id in range(1, 31)
        ]
    )
    for slot in range(20):
        assert worker.search.ask(slot).keys() >= {"optimizer", "learning_rate", "hidden_units"}


def test_several_objectives_search_too() -> None:
    objectives = [
        {"metric": "val_loss", "direction": "minimize"},
        {"metric": "val_accuracy", "direction": "maximize"},
    ]
    definition = study(objective=objectives, sampler={"type": "tpe", "seed": 4})
    runs = []
    for _ in range(2):
        search, asked = StudySearch(definition, "several"), []
        for slot in range(25):
            params = search.ask(slot)
            asked.append(params)
            search.started(slot, params)
            search.finished(slot, "COMPLETE", (loss(params), 1 - loss(params)), infeasible=False)
        runs.append(asked)
    assert runs[0] == runs[1]
    assert all(("momentum" in params) == (params["optimizer"] != "adam") for params in runs[0])
    assert len({params["learning_rate"] for params in runs[0]}) == 25


def test_random_search_ignores_the_history() -> None:
    definition = study(sampler={"type": "random", "seed": 11})
    worker = Worker(definition, {})
    asked = [worker.run(slot) for slot in range(20)]
    space = space_of(definition)
    assert asked == [draw(space, seed=11, slot=slot) for slot in range(20)]


def test_tpe_finds_better_points_than_random_search() -> None:
    best: dict[str, list[float]] = {"random": [], "tpe": []}
    for kind, found in best.items():
        for seed in range(7):
            worker = Worker(minimizing(sampler={"type": kind, "seed": seed}), {})
            found.append(min(loss(worker.run(slot)) for slot in range(80)))
    assert np.median(best["tpe"]) < 0.6 * np.median(best["random"])


def test_the_pruner_decides_from_reports() -> None:
    pruner = {"type": "median", "startup_trials": 3}
    search = StudySearch(minimizing(parameters=FLAT, pruner=pruner), "pruned")
    for trial_id in range(1, 5):
        search.started(trial_id, search.ask(trial_id))
        search.report(trial_id, 1, float(trial_id))
        assert not search.should_prune(trial_id) or trial_id == 4
        if trial_id < 4:
            search.finished(trial_id, "COMPLETE", (float(trial_id),), infeasible=False)
    assert search.should_prune(4)


def test_a_result_that_was_not_written_is_forgotten() -> None:
    worker = told()
    untouched = told()
    params = worker.search.ask(60)
    worker.search.started(200, params)
    worker.search.finished(200, "COMPLETE", (-1e9,), infeasible=False)
    worker.search.forget(200)
    assert 200 in worker.search.unfinished
    worker.search.merge([stored(200, params, "FAIL", distributions=worker.distributions)])
    assert worker.search.unfinished == set()
    assert worker.search.ask(99) == untouched.search.ask(99)
