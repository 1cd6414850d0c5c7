"""Races between two real processes, each stopped in the middle of its transaction in turn."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from sqlalchemy import select

from tests.integration.lifecycle.hands import (
    SETTINGS,
    Hand,
    definition,
    expire,
    plain_optuna,
    submitted,
)
from tests.integration.lifecycle.racers import Call, Point, Racer, Track, call
from tests.invariants import check_invariants
from tuner_service.errors import ConflictError
from tuner_service.lifecycle.claim import claim
from tuner_service.lifecycle.flush import flush
from tuner_service.lifecycle.messages import (
    Batch,
    Fail,
    Finish,
    Flushed,
    HandBack,
    Lease,
    Report,
    Start,
)
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.studies import (
    StudyPatch,
    cancel,
    delete,
    get_study,
    list_studies,
    patch,
    pause,
)
from tuner_service.lifecycle.submit import submit
from tuner_service.lifecycle.trials import list_trials
from tuner_service.lifecycle.views import Failure
from tuner_service.storage import Database
from tuner_service.storage.schema import slots

POINTS: tuple[Point, ...] = ("write", "commit")


@pytest.fixture(scope="module")
def racers() -> Iterator[tuple[Racer, Racer]]:
    pair = (Racer(), Racer())
    yield pair
    for racer in pair:
        racer.close()


@pytest.fixture(params=POINTS)
def point(request: pytest.FixtureRequest) -> Point:
    chosen: Point = request.param
    return chosen


class Race:
    """Runs two calls against each other, either first."""

    def __init__(self, db: Database, track: Track, point: Point, swapped: bool) -> None:
        self.db = db
        self._track = track
        self._point = point
        self.swapped = swapped

    def __call__(self, one: Call, two: Call) -> tuple[Any, Any]:
        """Return the results of both, `one`'s first whoever ran first."""
        pair = (two, one) if self.swapped else (one, two)
        first, second = self._track.race(*pair, stop_at=self._point)
        check_invariants(self.db, settings=SETTINGS)
        return (second, first) if self.swapped else (first, second)


@pytest.fixture(params=[False, True], ids=["", "swapped"])
def race(
    db: Database, racers: tuple[Racer, Racer], point: Point, request: pytest.FixtureRequest
) -> Race:
    return Race(db, Track(db.url, racers), point, request.param)


def claiming(worker: str, limit: int) -> Call:
    return call(claim, worker_id=worker, queue="cpu", limit=limit, lease_seconds=30.0)


def flushing(worker: str = "worker-1", **parts: Any) -> Call:
    return call(
        flush, worker_id=worker, batch=Batch(**parts), lease_seconds=30.0, settings=SETTINGS
    )


def finishing(lease: Lease, trial_id: int, value: float = 0.5) -> Call:
    return flushing(finishes=[Finish(lease, trial_id, "COMPLETE", (value,), {})])


RECONCILING = call(reconcile, settings=SETTINGS)


def slot_row(db: Database, lease: Lease) -> Any:
    with db.read() as connection:
        return connection.execute(select(slots).where(slots.c.id == lease.slot_id)).mappings().one()


def states(db: Database, study: str) -> list[str]:
    return [trial.state for trial in list_trials(db, study).items]


def test_claim_against_claim(db: Database, race: Race) -> None:
    submitted(db, resources={"parallel_trials": 3})
    one, two = race(claiming("worker-1", 2), claiming("worker-2", 2))
    numbers = [lease.number for lease in (*one.leases, *two.leases)]
    assert sorted(numbers) == [0, 1, 2]


def test_finish_against_reap(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    expire(db, lease)
    finished, reconciled = race(finishing(lease, trial_id), RECONCILING)
    won = lease.key not in finished.lost
    assert reconciled.reaped == (0 if won else 1)
    assert states(db, study.id) == (["COMPLETE"] if won else ["FAIL"])
    assert get_study(db, study.id).state == ("completed" if won else "running")


def test_finish_against_cancel(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    finished, cancelled = race(finishing(lease, trial_id), call(cancel, study.id))
    assert (finished.lost, cancelled.state) == (set(), "cancelled")
    progress = get_study(db, study.id).progress
    assert (progress.done, progress.cancelled) == (1, 1)


def test_cancel_against_claim(db: Database, race: Race) -> None:
    study = submitted(db)
    cancelled, claimed = race(call(cancel, study.id), claiming("worker-1", 2))
    assert cancelled.state == "cancelled"
    for lease in claimed.leases:
        flushed = Hand(db).flush(starts=[Start(lease, lease.parameters)])
        assert flushed.lost == {lease.key}
    assert states(db, study.id) == []
    assert get_study(db, study.id).progress.cancelled == 4


def test_cancel_against_start(db: Database, hand: Hand, race: Race) -> None:
    """I7: once the cancel is acknowledged there is no trial that it does not know of."""
    study = submitted(db)
    (lease,) = hand.claim().leases
    start = flushing(starts=[Start(lease, lease.parameters or {})])
    cancelled, flushed = race(call(cancel, study.id), start)
    assert cancelled.state == "cancelled"
    if flushed.started:
        assert states(db, study.id) == ["RUNNING"]
        assert hand.flush(renew=[lease]).stop == {lease.key: "cancelled"}
    else:
        assert flushed.lost == {lease.key}
        assert states(db, study.id) == []
    if not race.swapped:
        assert not flushed.started


def test_a_zombies_finish_against_the_retry(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    old, old_trial = hand.claim_and_start()
    expire(db, old)
    reconcile(db, settings=SETTINGS)
    zombie, claimed = race(finishing(old, old_trial, 0.9), claiming("worker-2", 1))
    assert zombie.lost == {old.key}
    (new,) = claimed.leases
    other = Hand(db, "worker-2")
    other.finish(new, other.start(new), 0.4)
    best = get_study(db, study.id).best_trial
    assert best is not None
    assert best.value == 0.4


def test_a_zombies_finish_against_the_retrys_finish(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    old, old_trial = hand.claim_and_start()
    expire(db, old)
    reconcile(db, settings=SETTINGS)
    other = Hand(db, "worker-2")
    new, new_trial = other.claim_and_start()
    result = Finish(new, new_trial, "COMPLETE", (0.4,), {})
    zombie, finished = race(finishing(old, old_trial, 0.9), flushing("worker-2", finishes=[result]))
    assert (zombie.lost, finished.lost) == ({old.key}, set())
    assert states(db, study.id) == ["FAIL", "COMPLETE"]


def test_the_same_finish_sent_twice_at_once(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    one, two = race(finishing(lease, trial_id), finishing(lease, trial_id))
    assert one.lost == two.lost == set()
    assert get_study(db, study.id).progress.done == 1


def test_submit_against_submit_with_one_key(db: Database, race: Race) -> None:
    same = call(submit, definition(), settings=SETTINGS, idempotency_key="key")
    (one, one_new), (two, two_new) = race(same, same)
    assert one.id == two.id
    assert sorted([one_new, two_new]) == [False, True]
    assert len(list_studies(db).items) == 1


def test_submit_against_submit_with_one_name(db: Database, race: Race) -> None:
    same = call(submit, definition(), settings=SETTINGS)
    (one, _), (two, _) = race(same, same)
    assert {one.name, two.name} == {"small", "small-2"}


def test_pause_against_claim(db: Database, race: Race) -> None:
    study = submitted(db)
    paused, claimed = race(call(pause, study.id), claiming("worker-1", 2))
    assert paused.state == "paused"
    for lease in claimed.leases:
        flushed = Hand(db).flush(starts=[Start(lease, lease.parameters)])
        assert (flushed.started, flushed.stop) == ({}, {lease.key: "paused"})
    assert states(db, study.id) == []
    if not race.swapped:
        assert not claimed.leases


def test_delete_against_heartbeat(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    lease, trial_id = hand.claim_and_start()
    pause(db, study.id)
    report = flushing(reports=[Report(lease, trial_id, 1, 0.1, {})], renew=[lease])
    deleted, flushed = race(call(delete, study.id), report)
    assert deleted
    assert list_studies(db).items == []
    known = lease.key not in flushed.lost
    assert known == race.swapped
    assert hand.flush(renew=[lease]).lost == {lease.key}


def test_heartbeat_against_reap(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    expire(db, lease)
    renewed, reconciled = race(flushing(renew=[lease]), RECONCILING)
    kept = lease.key not in renewed.lost
    assert reconciled.reaped == (0 if kept else 1)
    assert states(db, study.id) == (["RUNNING"] if kept else ["FAIL"])
    assert slot_row(db, lease)["state"] == ("leased" if kept else "open")


def test_hand_back_against_reap(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    expire(db, lease)
    flushed, reconciled = race(flushing(hand_backs=[HandBack(lease, 2)]), RECONCILING)
    kept = lease.key not in flushed.lost
    assert reconciled.reaped == (0 if kept else 1)
    row = slot_row(db, lease)
    assert (row["state"], row["trial_id"]) == ("open", trial_id if kept else None)
    assert states(db, study.id) == (["RUNNING"] if kept else ["FAIL"])


def test_reap_against_reap(db: Database, hand: Hand, race: Race) -> None:
    submitted(db, budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    expire(db, lease)
    one, two = race(RECONCILING, RECONCILING)
    assert one.reaped + two.reaped == 1
    assert slot_row(db, lease)["lost_leases"] == 1


def test_fail_against_reap(db: Database, hand: Hand, race: Race) -> None:
    submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    expire(db, lease)
    fail = Fail(lease, trial_id, Failure(kind="user_code", message="x"), blamed=True)
    race(flushing(fails=[fail]), RECONCILING)
    row = slot_row(db, lease)
    assert row["blamed_attempts"] + row["lost_leases"] == 1


def test_the_last_two_finishes(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 2})
    (one, two) = hand.claim(2).leases
    first, second = hand.start(one), hand.start(two)
    race(finishing(one, first, 0.3), finishing(two, second, 0.7))
    view = get_study(db, study.id)
    assert (view.state, view.progress.done) == ("completed", 2)
    assert view.best_trial is not None
    assert view.best_trial.value == 0.7


def test_starts_are_numbered_without_gap_or_repetition(
    db: Database, hand: Hand, race: Race
) -> None:
    study = submitted(db, budget={"trials": 4})
    one, two = hand.claim(2).leases, Hand(db, "worker-2").claim(2).leases
    answers: tuple[Flushed, Flushed] = race(
        flushing(starts=[Start(lease, lease.parameters or {}) for lease in one]),
        flushing("worker-2", starts=[Start(lease, lease.parameters or {}) for lease in two]),
    )
    numbers = [trial.number for flushed in answers for trial in flushed.started.values()]
    assert sorted(numbers) == [0, 1, 2, 3]
    assert [trial.number for trial in list_trials(db, study.id).items] == [0, 1, 2, 3]


def test_a_raised_budget_against_the_last_finish(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    raised = call(patch, study.id, StudyPatch(trials=3), settings=SETTINGS)
    race(raised, finishing(lease, trial_id))
    view = get_study(db, study.id)
    assert (view.state, view.progress.open, view.progress.done) == ("running", 2, 1)


def test_two_raised_budgets(db: Database, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    race(
        call(patch, study.id, StudyPatch(trials=3), settings=SETTINGS),
        call(patch, study.id, StudyPatch(trials=3), settings=SETTINGS),
    )
    assert get_study(db, study.id).progress.total == 3


def test_cancel_against_delete(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    cancelled, deleted = race(call(cancel, study.id), call(delete, study.id))
    if isinstance(deleted, ConflictError):  # it was still queued
        assert cancelled.state == "cancelled"
        assert race.swapped
    else:
        assert list_studies(db).items == []


def tell(db: Database, study: str, value: float) -> str:
    """What a script with plain Optuna does to trial 0."""
    with plain_optuna(db.url) as storage:
        try:
            optuna.load_study(study_name=study, storage=storage).tell(0, value)
        except (ValueError, optuna.exceptions.OptunaError):
            return "refused"
    return "told"


# On PostgreSQL both lock the trial's row. On SQLite plain Optuna reads and then writes without a
# lock, and nothing that we do can help it.
@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_finish_against_plain_optunas_tell(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    finished, told = race(finishing(lease, trial_id, 0.5), call(tell, study.name, 0.9))
    (trial,) = list_trials(db, study.id).items
    if told == "told":
        assert finished.lost == {lease.key}
        assert trial.value == 0.9
    else:
        assert finished.lost == set()
        assert trial.value == 0.5
    assert get_study(db, study.id).state == "completed"
