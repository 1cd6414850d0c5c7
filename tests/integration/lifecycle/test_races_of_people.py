"""Races of people: submit, pause, resume, cancel, raise and delete against each other and workers.

Two real processes, each stopped in its transaction in turn.
"""

from typing import Any

from sqlalchemy import insert

from tests.integration.lifecycle.hands import SETTINGS, Hand, definition, expire, remove, submitted
from tests.integration.lifecycle.racers import call
from tests.integration.lifecycle.racing import (
    RECONCILING,
    Race,
    claiming,
    finishing,
    flushing,
    slot_row,
    states,
)
from tuner_service.errors import ConflictError, NotFoundError, QuotaError
from tuner_service.lifecycle.change import StudyPatch, cancel, patch, pause, resume
from tuner_service.lifecycle.delete import delete
from tuner_service.lifecycle.messages import Finish, HandBack, Report, Start
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.studies import get_study, list_studies
from tuner_service.storage import Database
from tuner_service.storage.schema import api_keys


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
    remove(db)
    assert hand.flush(renew=[lease]).lost == {lease.key}


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


def test_resume_against_cancel(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    lease, _ = hand.claim_and_start()
    pause(db, study.id)
    resumed, cancelled = race(call(resume, study.id), call(cancel, study.id))
    assert cancelled.state == "cancelled"
    if isinstance(resumed, ConflictError):
        assert race.swapped
    else:
        assert resumed.state == "running"
    view = get_study(db, study.id)
    assert (view.state, view.progress.open, view.progress.cancelled) == ("cancelled", 0, 3)
    assert hand.flush(renew=[lease]).stop == {lease.key: "cancelled"}


def test_cancel_against_hand_back(db: Database, hand: Hand, race: Race) -> None:
    """Handed back before or after, the trial ends with its study."""
    study = submitted(db, budget={"trials": 2})
    lease, _ = hand.claim_and_start()
    cancelled, flushed = race(
        call(cancel, study.id), flushing(hand_backs=[HandBack(lease, 2)], renew=[lease])
    )
    assert (cancelled.state, flushed.lost) == ("cancelled", set())
    assert states(db, study.id) == ["FAIL"]
    progress = get_study(db, study.id).progress
    assert (progress.open, progress.leased, progress.cancelled) == (0, 0, 2)


def test_pause_against_the_last_finish(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    paused, finished = race(call(pause, study.id), finishing(lease, trial_id))
    assert finished.lost == set()
    assert isinstance(paused, ConflictError) or paused.state == "paused"
    assert get_study(db, study.id).state == "completed"


def test_pause_against_hand_back(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    race(call(pause, study.id), flushing(hand_backs=[HandBack(lease, 2)]))
    assert get_study(db, study.id).state == "paused"
    row = slot_row(db, lease)
    assert (row["state"], row["trial_id"], row["checkpoint_step"]) == ("open", trial_id, 2)
    assert not hand.claim().leases


def test_delete_against_finish(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    cancel(db, study.id)
    finish = Finish(lease, trial_id, "COMPLETE", (0.5,), {}, model_path="model")
    deleted, flushed = race(call(delete, study.id), flushing(finishes=[finish]))
    assert deleted
    assert list_studies(db).items == []
    assert flushed.lost == (set() if race.swapped else {lease.key})


def test_delete_against_claim(db: Database, hand: Hand, race: Race) -> None:
    doomed, other = submitted(db, priority=5), submitted(db, name="other", budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    pause(db, doomed.id)
    hand.flush(hand_backs=[HandBack(lease, 1)])
    _, claimed = race(call(delete, doomed.id), claiming("worker-2", 9))
    assert [study.public_id for study in claimed.studies.values()] == [other.id]
    assert [study.name for study in list_studies(db).items] == ["other"]


def test_resume_against_delete(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    hand.claim_and_start()
    pause(db, study.id)
    resumed, deleted = race(call(resume, study.id), call(delete, study.id))
    if isinstance(deleted, ConflictError):
        assert (resumed.state, len(list_studies(db).items)) == ("running", 1)
    else:
        assert isinstance(resumed, NotFoundError)
        assert list_studies(db).items == []


def test_delete_against_delete(db: Database, race: Race) -> None:
    study = submitted(db)
    cancel(db, study.id)
    answers = race(call(delete, study.id), call(delete, study.id))
    assert sum(isinstance(answer, NotFoundError) for answer in answers) == 1


def test_delete_against_reap(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    lease, _ = hand.claim_and_start()
    pause(db, study.id)
    expire(db, lease)
    _, reconciled = race(call(delete, study.id), RECONCILING)
    assert reconciled.reaped == (1 if race.swapped else 0)
    assert list_studies(db).items == []


def test_a_raised_budget_against_a_cancel(db: Database, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    raised, cancelled = race(
        call(patch, study.id, StudyPatch(trials=3), settings=SETTINGS), call(cancel, study.id)
    )
    assert cancelled.state == "cancelled"
    total = 1 if isinstance(raised, ConflictError) else 3
    progress = get_study(db, study.id).progress
    assert (progress.total, progress.cancelled, progress.open) == (total, total, 0)


def test_submit_against_submit_at_a_keys_limit(db: Database, race: Race) -> None:
    with db.write() as connection:
        key = {"id": "k", "name": "k", "hash": "h", "scopes": ["write"], "created_at": 0.0}
        connection.execute(insert(api_keys).values(**key))
    settings = SETTINGS.model_copy(update={"key_open_slots": 5})
    one, two = (call(submit, definition(name=n), settings=settings, owner="k") for n in "ab")
    answers: tuple[Any, Any] = race(one, two)
    assert sum(isinstance(answer, QuotaError) for answer in answers) == 1
    assert len(list_studies(db).items) == 1
