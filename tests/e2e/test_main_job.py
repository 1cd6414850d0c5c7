"""The main job from POST to the last row, on both back ends, through real processes.

The tests stand in the order of the workers they need, since a worker takes seconds to start.
"""

import contextlib
import os
import signal
import uuid
from collections import Counter
from typing import Any

import optuna
import pytest

from tests.e2e.service import Service, until
from tests.e2e.studies import GRID_POINTS, endless, grid, sampled
from tests.invariants import check_invariants
from tuner_service.settings import Settings
from tuner_service.storage import Database

pytestmark = pytest.mark.timeout(240)

ENDED = ("COMPLETE", "PRUNED")


@pytest.fixture(autouse=True)
def _invariants(service: Service) -> Any:
    """Whatever a test does, the invariants hold after it."""
    yield
    db = Database.open(service.database_url)
    with contextlib.closing(db):
        check_invariants(db, settings=Settings(data_dir=service.directory))


@pytest.fixture(scope="package")
def drawn() -> dict[str, dict[int, Any]]:
    """What a random study drew under one worker, by database."""
    return {}


def name_of(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:8]}"


def ended(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [trial for trial in trials if trial["state"] in ENDED]


def has_reports(service: Service, study: str, count: int = 1) -> None:
    def reported() -> bool:
        return sum(trial["last_step"] or 0 for trial in service.trials(study)) >= count

    until(reported, what=f"{count} reports of {study}")


def a_grid_finishes_each_point_exactly_once(service: Service) -> None:
    study = service.submit(grid(name_of("grid")))
    done = service.wait(study)
    assert done["state"] == "completed"
    assert done["progress"]["done"] == done["progress"]["total"] == GRID_POINTS
    found = Counter(tuple(sorted(t["parameters"].items())) for t in service.trials(study))
    assert len(found) == GRID_POINTS
    assert set(found.values()) == {1}
    coverage = service.get(f"/v1/studies/{study}/coverage")
    assert (coverage["done"], coverage["failed"]) == (GRID_POINTS, 0)


def the_budget_is_exact(service: Service, sampler: str) -> list[dict[str, Any]]:
    study = service.submit(sampled(name_of(sampler), sampler, 24, pruner={"type": "median"}))
    done = service.wait(study)
    assert done["state"] == "completed"
    trials = service.trials(study)
    assert len(trials) == len(ended(trials)) == 24
    assert sorted(trial["slot"] for trial in trials) == list(range(24))
    complete = [trial["value"] for trial in trials if trial["state"] == "COMPLETE"]
    assert done["best_trial"]["value"] == max(complete)
    return trials


def parameters_of(trials: list[dict[str, Any]]) -> dict[int, Any]:
    return {trial["slot"]: trial["parameters"] for trial in trials}


# One worker


def test_one_worker_covers_a_grid(service: Service) -> None:
    service.scale(1)
    a_grid_finishes_each_point_exactly_once(service)


def test_one_worker_keeps_the_budget_of_a_random_study(
    service: Service, drawn: dict[str, Any]
) -> None:
    service.scale(1)
    drawn[service.database_url] = parameters_of(the_budget_is_exact(service, "random"))


def test_one_worker_keeps_the_budget_of_a_tpe_study(service: Service) -> None:
    service.scale(1)
    the_budget_is_exact(service, "tpe")


def test_a_random_study_is_the_same_fused_and_plain(service: Service) -> None:
    service.scale(1)
    found = {}
    for fuse in (True, False):
        study = service.submit(
            sampled(
                name_of("fused" if fuse else "plain"),
                "random",
                8,
                objective={"metric": "val_loss", "direction": "minimize"},
                training={"epochs": 5, "seed": 0, "precision": "float64", "fuse": fuse},
            )
        )
        assert service.wait(study)["state"] == "completed"
        found[fuse] = {trial["slot"]: trial for trial in service.trials(study)}
    assert parameters_of(list(found[True].values())) == parameters_of(list(found[False].values()))
    for slot, plain in found[False].items():
        fused = found[True][slot]
        assert fused["value"] == pytest.approx(plain["value"], abs=1e-9)
        assert plain["backend"] == "plain"
        assert plain["backend_reason"] == "training.fuse is false"
    assert any(trial["backend"] != "plain" for trial in found[True].values())


def test_plain_optuna_reads_the_study(service: Service) -> None:
    service.scale(1)
    name = name_of("plain")
    study = service.submit(sampled(name, "tpe", 10))
    service.wait(study)
    trials = {trial["number"]: trial for trial in service.trials(study)}
    storage = optuna.storages.RDBStorage(service.database_url)
    try:
        loaded = optuna.load_study(study_name=name, storage=storage)
        assert len(loaded.trials) == len(trials) == 10
        for plain in loaded.trials:
            ours = trials[plain.number]
            assert plain.state.name == ours["state"]
            assert plain.params == ours["parameters"]
            assert plain.value == ours["value"]
            assert sorted(plain.intermediate_values) == [1, 2, 3]
        assert loaded.best_value == service.study(study)["best_trial"]["value"]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_cancel_frees_the_worker_and_starts_nothing_more(service: Service) -> None:
    service.scale(1)
    study = service.submit(endless(name_of("cancelled"), 40))
    has_reports(service, study)
    service.act(study, "cancel")
    known = len(service.trials(study))
    assert service.study(study)["state"] == "cancelled"
    until(
        lambda: all(trial["state"] != "RUNNING" for trial in service.trials(study)),
        what="the end of the running trials",
    )
    assert len(service.trials(study)) == known
    after = service.submit(sampled(name_of("after"), "random", 2))
    assert service.wait(after)["state"] == "completed"


def test_pause_hands_back_and_resume_continues_the_same_trials(service: Service) -> None:
    service.scale(1)
    study = service.submit(sampled(name_of("paused"), "random", 4, training={"epochs": 200}))
    has_reports(service, study, 4)
    service.act(study, "pause")
    until(lambda: service.study(study)["progress"]["leased"] == 0, what="the hand-back")
    before = [t for t in service.trials(study) if t["state"] == "RUNNING"]
    assert before
    service.act(study, "resume")
    assert service.wait(study)["state"] == "completed"
    after = {trial["number"]: trial for trial in service.trials(study)}
    assert len(after) == 4, "a hand-back uses no attempt"
    for trial in before:
        assert after[trial["number"]]["parameters"] == trial["parameters"]
        assert after[trial["number"]]["last_step"] == 200


# Two workers


def test_two_studies_progress_at_once_also_while_one_is_long(service: Service) -> None:
    service.scale(2)
    long = service.submit(endless(name_of("long"), 60))
    has_reports(service, long)
    short = service.submit(sampled(name_of("short"), "random", 4))
    try:
        assert service.wait(short, seconds=30.0)["state"] == "completed"
        assert service.study(long)["state"] == "running"
    finally:
        service.act(long, "cancel")


def test_a_stopped_worker_hands_back_within_its_grace_time(service: Service) -> None:
    service.scale(2)
    service.stop(service.workers[0])
    study = service.submit(endless(name_of("stopped"), 8))
    has_reports(service, study)
    worker = service.workers[0]
    trainer = worker.trainer()
    assert trainer is not None
    try:
        assert service.stop(worker) == 0
        progress = service.study(study)["progress"]
        assert (progress["leased"], progress["open"]) == (0, 8)
        assert all(trial["state"] == "RUNNING" for trial in service.trials(study))
        assert not trainer.is_running()
    finally:
        service.act(study, "cancel")


@pytest.mark.parametrize("victim", ["trainer", "worker"])
def test_a_killed_process_loses_and_repeats_nothing(service: Service, victim: str) -> None:
    service.scale(2)
    study = service.submit(sampled(name_of("killed"), "random", 12, training={"epochs": 60}))
    until(lambda: service.done(study) >= 2, what="two results")
    worker = service.workers[0]
    if victim == "worker":
        service.kill(worker)
    else:
        trainer = worker.trainer()
        assert trainer is not None
        os.kill(trainer.pid, signal.SIGKILL)
    done = service.wait(study)
    assert (done["state"], done["progress"]["done"]) == ("completed", 12)
    trials = service.trials(study)
    assert Counter(trial["slot"] for trial in ended(trials)) == dict.fromkeys(range(12), 1)
    lost = [trial for trial in trials if trial["state"] == "FAIL"]
    assert {trial["failure"]["kind"] for trial in lost} <= {"worker_lost", "user_code"}
    first = parameters_of(lost)
    assert first == {slot: p for slot, p in parameters_of(ended(trials)).items() if slot in first}


# Three workers


def test_three_workers_cover_a_grid(service: Service) -> None:
    service.scale(3)
    a_grid_finishes_each_point_exactly_once(service)


def test_three_workers_draw_the_same_random_study_as_one(
    service: Service, drawn: dict[str, Any]
) -> None:
    if service.database_url not in drawn:
        pytest.skip("the study under one worker was not run")
    service.scale(3)
    assert parameters_of(the_budget_is_exact(service, "random")) == drawn[service.database_url]


def test_three_workers_keep_the_budget_of_a_tpe_study(service: Service) -> None:
    service.scale(3)
    the_budget_is_exact(service, "tpe")
