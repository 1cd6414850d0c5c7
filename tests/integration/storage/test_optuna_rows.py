"""Optuna's rows as we write them, held against what Optuna itself writes: field by field."""

import math
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import get_note

from tuner_service.storage import Database, optuna_rows

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "momentum": FloatDistribution(0.0, 1.0, step=0.1),
    "units": IntDistribution(1, 512, log=True),
    "layers": IntDistribution(1, 9, step=2),
    "optimizer": CategoricalDistribution(["sgd", "adam", None, 3, 0.5, True]),
}
PARAMS = [
    {"learning_rate": 1e-3, "momentum": 0.3, "units": 32, "layers": 3, "optimizer": "adam"},
    {"learning_rate": 1e-5, "optimizer": None},
    {"units": 512, "layers": 9, "optimizer": True},
    {},
]
CURVES: list[dict[int, float]] = [
    {1: 0.25, 2: 0.5},
    {1: math.nan, 3: math.inf, 7: -math.inf},
    {},
    {0: 1e-300},
]
ATTRS: list[dict[str, Any]] = [{"slot": 0, "worker": "w"}, {"a": [1, {"b": None}]}, {}, {"é": "ü"}]
ENDS: list[tuple[TrialState, list[float] | None]] = [
    (TrialState.COMPLETE, [0.5, -1.25]),
    (TrialState.PRUNED, [math.inf, -math.inf]),
    (TrialState.FAIL, None),
    (TrialState.RUNNING, None),
]


@pytest.fixture
def storage(db: Database) -> Iterator[RDBStorage]:
    plain = RDBStorage(db.url)
    yield plain
    plain.remove_session()
    plain.engine.dispose()


def write_ours(db: Database) -> None:
    with db.write() as connection:
        now = db.now(connection)
        study = optuna_rows.create_study(
            connection,
            "ours",
            ["minimize", "maximize"],
            user_attrs={"team": "vision"},
            system_attrs={"x": 1},
        )
        optuna_rows.lock_studies(connection, [study])
        created = optuna_rows.create_trials(
            connection,
            study,
            [
                optuna_rows.NewTrial(params, attrs, curve)
                for params, attrs, curve in zip(PARAMS, ATTRS, CURVES, strict=True)
            ],
            DISTRIBUTIONS,
            now=now,
        )
        for (trial_id, _), (state, values) in zip(created, ENDS, strict=True):
            if state is TrialState.RUNNING:
                continue
            assert optuna_rows.finish_trials(connection, [trial_id], state, now=now) == {trial_id}
            if values is not None:
                optuna_rows.set_values(connection, [(trial_id, values)])
        infeasible = (created[1][0], optuna_rows.CONSTRAINT_PREFIX + "diverged", 1.0)
        optuna_rows.set_attrs(connection, optuna_rows.SYSTEM_ATTRS, [infeasible])


def write_theirs(storage: RDBStorage) -> None:
    directions = [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    study = storage.create_new_study(directions, "theirs")
    storage.set_study_user_attr(study, "team", "vision")
    storage.set_study_system_attr(study, "x", 1)
    for number, (state, values) in enumerate(ENDS):
        trial = create_trial(
            state=state,
            values=values,
            params=PARAMS[number],
            distributions={name: DISTRIBUTIONS[name] for name in PARAMS[number]},
            user_attrs=ATTRS[number],
            intermediate_values=CURVES[number],
        )
        if number == 1:
            trial.set_constraint("diverged", 1.0)
        storage.create_new_trial(study, trial)


def fields(trial: FrozenTrial) -> dict[str, Any]:
    """Everything of a trial but its id and its times; NaN made equal to itself."""
    return {
        "number": trial.number,
        "state": trial.state,
        "values": trial.values,
        "params": trial.params,
        "types": {name: type(value) for name, value in trial.params.items()},
        "distributions": trial.distributions,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "constraints": trial.constraints,
        "intermediate_values": {k: repr(v) for k, v in trial.intermediate_values.items()},
        "started": trial.datetime_start is not None,
        "ended": trial.datetime_complete is not None,
        "duration": trial.duration is not None,
    }


def test_plain_optuna_reads_our_trials_as_its_own(db: Database, storage: RDBStorage) -> None:
    write_ours(db)
    write_theirs(storage)
    ours = optuna.load_study(study_name="ours", storage=storage)
    theirs = optuna.load_study(study_name="theirs", storage=storage)
    assert ours.directions == theirs.directions
    assert ours.user_attrs == theirs.user_attrs
    system = ("x",)
    assert [ours._storage.get_study_system_attrs(ours._study_id)[key] for key in system] == [1]
    assert len(ours.trials) == len(ENDS)
    for mine, other in zip(ours.trials, theirs.trials, strict=True):
        mine._validate()
        assert fields(mine) == fields(other)


def test_plain_optuna_goes_on_with_our_study(db: Database, storage: RDBStorage) -> None:
    write_ours(db)
    study = optuna.load_study(study_name="ours", storage=storage)
    trial = study.ask(DISTRIBUTIONS)
    assert trial.number == len(ENDS)
    study.tell(trial, [0.1, 0.2])
    study.tell(3, [0.3, 0.4])
    assert [t.state for t in study.trials[3:]] == [TrialState.COMPLETE, TrialState.COMPLETE]
    assert {t.number for t in study.best_trials} <= {0, 3, 4}


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
def test_times_are_local_times_as_optuna_shows_them(
    db: Database, storage: RDBStorage, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        write_ours(db)
        trial = optuna.load_study(study_name="ours", storage=storage).trials[0]
        assert trial.datetime_start is not None
        assert abs(trial.datetime_start - datetime.now()) < timedelta(seconds=30)  # noqa: DTZ005
        assert trial.datetime_complete is not None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_ended_trial_is_not_ended_again(db: Database, storage: RDBStorage) -> None:
    write_ours(db)
    before = optuna.load_study(study_name="ours", storage=storage).trials
    ids = [trial._trial_id for trial in before]
    with db.write() as connection:
        now = db.now(connection)
        moved = optuna_rows.finish_trials(connection, ids, TrialState.FAIL, now=now)
    assert moved == {ids[3]}


def test_a_nan_is_never_a_final_value(db: Database) -> None:
    write_ours(db)
    with pytest.raises(ValueError, match="must be a number"), db.write() as connection:
        optuna_rows.set_values(connection, [(4, [math.nan])])


def test_notes_are_what_the_dashboard_reads(db: Database, storage: RDBStorage) -> None:
    write_ours(db)
    study = optuna.load_study(study_name="ours", storage=storage)
    trial = optuna.trial.Trial(study, study.trials[2]._trial_id)
    for note in ("**boom**", "again"):
        with db.write() as connection:
            optuna_rows.set_notes(connection, [(study._study_id, trial._trial_id, note)])
        assert get_note(trial) == note


@pytest.mark.parametrize("count", [1, 2, 2000])
def test_deleting_leaves_nothing_and_touches_no_other(
    db: Database, storage: RDBStorage, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_rows, "TRIALS_IN_A_STATEMENT", count)
    write_ours(db)
    write_theirs(storage)
    theirs = [fields(t) for t in optuna.load_study(study_name="theirs", storage=storage).trials]
    ours = storage.get_study_id_from_name("ours")
    numbers = [trial._trial_id for trial in storage.get_all_trials(ours)]
    with db.write() as connection:
        assert optuna_rows.last_trials(connection, ours, count) == sorted(numbers)[-count:][::-1]
        optuna_rows.delete_study(connection, ours)
    assert optuna.get_all_study_names(storage=storage) == ["theirs"]
    after = [fields(t) for t in optuna.load_study(study_name="theirs", storage=storage).trials]
    assert after == theirs


def test_a_deleted_studys_id_is_not_given_out_again(db: Database, storage: RDBStorage) -> None:
    """The dashboard keeps what it knows of a study by its id."""
    seen: list[int] = []
    for number in range(3):
        with db.write() as connection:
            study = optuna_rows.create_study(
                connection, f"s{number}", ["minimize"], user_attrs={}, system_attrs={}
            )
            optuna_rows.delete_study(connection, study)
        seen.append(study)
    assert len(set(seen)) == 3
    plain = storage.create_new_study([StudyDirection.MINIMIZE], "plain")
    with db.write() as connection:
        last = optuna_rows.create_study(
            connection, "last", ["minimize"], user_attrs={}, system_attrs={}
        )
    assert last not in {*seen, plain}
