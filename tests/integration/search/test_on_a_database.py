"""Workers that share a database, and plain Optuna, in one search."""

import math
from itertools import cycle
from typing import Any

import optuna
import pytest

from tests.integration.lifecycle.hands import SETTINGS, plain_optuna, submitted
from tuner_service.lifecycle.messages import Batch, Finish, Report, Start
from tuner_service.reads.trials import list_trials
from tuner_service.storage import Database
from workers.supervisor.database_store import DatabaseSlotStore
from workers.supervisor.studies import ActiveStudy

PARAMETERS: dict[str, Any] = {
    "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "momentum": {"type": "float", "low": 0.1, "high": 0.9, "when": {"optimizer": ["sgd"]}},
}
TRIALS = 24


def gain(params: dict[str, Any]) -> float:
    value = -((math.log10(params["learning_rate"]) + 2) ** 2)
    return value - abs(params.get("momentum", 0.1) - 0.9)


class Worker:
    """Claims a slot, asks, reports, finishes: the supervisor's calls, without a trainer."""

    def __init__(self, db: Database, name: str) -> None:
        self.store = DatabaseSlotStore(db, SETTINGS, name, "cpu")
        self.studies: dict[int, ActiveStudy] = {}

    def run_one(self, now: float) -> bool:
        claimed = self.store.claim(
            limit=1, exclude_exclusive=False, exclude_studies=(), fair_share=False
        )
        if not claimed.leases:
            return False
        (lease,) = claimed.leases
        work = claimed.studies[lease.study_id]
        if lease.study_id not in self.studies:
            self.studies[lease.study_id] = ActiveStudy.open(work)
        study = self.studies[lease.study_id]
        study.refresh(self.store, now)
        params = study.ask(lease)
        started = self.store.flush(Batch(starts=[Start(lease, params)])).started[lease.key]
        study.search.started(started.trial_id, params)
        value = gain(params)
        study.search.report(started.trial_id, 1, value)
        report = Report(lease, started.trial_id, 1, value, {})
        finish = Finish(lease, started.trial_id, "COMPLETE", (value,), {})
        study.search.finished(started.trial_id, "COMPLETE", (value,), infeasible=False)
        self.store.flush(Batch(reports=[report], finishes=[finish]))
        return True


def submit(db: Database, name: str, **changes: Any) -> None:
    submitted(
        db,
        name=name,
        parameters=PARAMETERS,
        sampler={"type": "tpe", "seed": 5, "startup_trials": 6},
        budget={"trials": TRIALS},
        **changes,
    )


def parameters_of(db: Database, name: str) -> list[dict[str, Any]]:
    return [trial.parameters for trial in list_trials(db, name, limit=100).items]


@pytest.mark.parametrize("count", [1, 3])
def test_tpe_one_at_a_time_is_the_same_under_any_number_of_workers(
    db: Database, count: int
) -> None:
    one_at_a_time = {"parallel_trials": 1}
    submit(db, "alone", resources=one_at_a_time)
    alone = Worker(db, "alone")
    while alone.run_one(now=0.0):
        pass
    submit(db, "team", resources=one_at_a_time)
    team = cycle(Worker(db, f"worker-{number}") for number in range(count))
    # The clock stands still: nobody may rely on having looked a moment ago.
    while next(team).run_one(now=0.0):
        pass
    assert len(parameters_of(db, "team")) == TRIALS
    assert parameters_of(db, "team") == parameters_of(db, "alone")


def test_trials_of_plain_optuna_move_the_search(db: Database, migrated_url: str) -> None:
    submit(db, "shared")
    worker = Worker(db, "worker-1")
    for turn in range(8):
        worker.run_one(now=float(turn))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with plain_optuna(migrated_url) as storage:
        study = optuna.load_study(study_name="shared", storage=storage)
        for place in range(40):
            trial = study.ask()
            trial.suggest_categorical("optimizer", ["sgd", "adam"])
            trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
            study.tell(trial, 100.0 if trial.params["learning_rate"] < 1e-3 else -float(place))
        while worker.run_one(now=100.0):
            pass
        ours = [
            trial.params["learning_rate"]
            for trial in study.get_trials(deepcopy=False)[48:]
            if trial.state.is_finished()
        ]
    assert len(ours) == TRIALS - 8
    # Without them the search would go for 1e-2.
    assert sum(rate < 1e-3 for rate in ours) > len(ours) / 2
