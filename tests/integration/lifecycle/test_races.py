"""Races of workers, reconcilers and other programs: each stopped in its transaction in turn.

Two real processes, so that SQLite's locks between processes are what is tried.
"""

import optuna
import pytest

from tests.integration.lifecycle.hands import SETTINGS, Hand, expire, plain_optuna, submitted
from tests.integration.lifecycle.racers import Stopping, call
from tests.integration.lifecycle.racing import (
    RECONCILING,
    Race,
    claiming,
    finishing,
    flushing,
    slot_row,
    states,
)
from tuner_service.lifecycle.messages import Fail, Finish, Flushed, HandBack, Report, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.reads.studies import get_study
from tuner_service.reads.trials import list_trials
from tuner_service.reads.views import Failure
from tuner_service.storage import Database


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


def tell(db: Stopping, study: str, value: float) -> str:
    """What a script with plain Optuna does to trial 0."""
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study, storage=storage)
        db.reach()
        try:
            plain.tell(0, value)
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


def test_the_same_start_sent_twice_at_once(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db, budget={"trials": 1})
    (lease,) = hand.claim().leases
    start = flushing(starts=[Start(lease, lease.parameters or {})])
    one, two = race(start, start)
    assert one.started == two.started
    assert states(db, study.id) == ["RUNNING"]
    assert slot_row(db, lease)["attempts"] == 1


def test_reap_against_claim(db: Database, hand: Hand, race: Race) -> None:
    """A lease that ran out is somebody's until it is reaped, and then claimed by one."""
    study = submitted(db, budget={"trials": 1})
    old, _ = hand.claim_and_start()
    expire(db, old)
    reconciled, claimed = race(RECONCILING, claiming("worker-2", 9))
    assert reconciled.reaped == 1
    if race.swapped:
        assert not claimed.leases
    (new,) = claimed.leases or Hand(db, "worker-2").claim().leases
    assert new.fencing_token > old.fencing_token
    assert states(db, study.id) == ["FAIL"]
    assert hand.flush(renew=[old]).lost == {old.key}


def test_checkpoint_against_reap(db: Database, hand: Hand, race: Race) -> None:
    """What the next attempt begins from is what was known when the lease was lost."""
    submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.flush(reports=[Report(lease, trial_id, step, 0.1, {}) for step in (1, 2, 3)])
    hand.flush(checkpoints=[(lease, 1)])
    expire(db, lease)
    flushed, _ = race(flushing(checkpoints=[(lease, 3)]), RECONCILING)
    kept = lease.key not in flushed.lost
    row = slot_row(db, lease)
    assert (row["state"], row["checkpoint_step"]) == (("leased", 3) if kept else ("open", 1))


def test_a_checkpoint_against_a_report_of_another_trial(
    db: Database, hand: Hand, race: Race
) -> None:
    study = submitted(db, budget={"trials": 2})
    mine, my_trial = hand.claim_and_start()
    other = Hand(db, "worker-2")
    theirs, their_trial = other.claim_and_start()
    one, two = race(
        flushing(checkpoints=[(mine, 2)]),
        flushing("worker-2", reports=[Report(theirs, their_trial, 1, 0.1, {})]),
    )
    assert one.lost == two.lost == set()
    assert slot_row(db, mine)["checkpoint_step"] == 2
    views = {view.trial_id: view.last_step for view in list_trials(db, study.id).items}
    assert views == {my_trial: None, their_trial: 1}


@pytest.mark.parametrize("values", [(0.3, 0.7), (0.7, 0.3), (0.5, 0.5)])
def test_two_best_models(db: Database, hand: Hand, race: Race, values: tuple[float, float]) -> None:
    study = submitted(db, budget={"trials": 2})
    first, first_trial = hand.claim_and_start()
    other = Hand(db, "worker-2")
    second, second_trial = other.claim_and_start()
    one, two = race(
        finishing(first, first_trial, values[0], model_path="first"),
        finishing(second, second_trial, values[1], model_path="second", worker="worker-2"),
    )
    best, worse = ("second", "first") if values[1] > values[0] else ("first", "second")
    assert [*one.drop_models, *two.drop_models] == [worse]
    view = get_study(db, study.id).best_trial
    assert view is not None
    assert (view.value, view.has_model) == (max(values), True)
    assert view.number == ("first", "second").index(best)


# On SQLite plain Optuna numbers a trial without a lock, and nothing that we do can help it.
@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_start_against_plain_optunas_ask(db: Database, hand: Hand, race: Race) -> None:
    study = submitted(db)
    (lease,) = hand.claim().leases
    flushed, number = race(
        flushing(starts=[Start(lease, lease.parameters or {})]), call(ask, study.name)
    )
    assert sorted([flushed.started[lease.key].number, number]) == [0, 1]


def ask(db: Stopping, study: str) -> int:
    """What a script with plain Optuna does to begin a trial."""
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study, storage=storage)
        db.reach()
        return plain.ask().number
