"""How trials, slots and studies end: results, blame, timeouts, and what other programs do."""

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import select, update

from tests.integration.lifecycle.hands import SETTINGS, Hand, expire, plain_optuna, submitted
from tests.integration.lifecycle.worlds import jump
from tests.invariants import check_invariants
from tuner_service.errors import ConflictError, InputError
from tuner_service.lifecycle.attempts import LOST_LEASES, LOST_LEASES_BEFORE_ALONE
from tuner_service.lifecycle.change import StudyPatch, cancel, patch, pause, resume
from tuner_service.lifecycle.flush_transaction import FlushTransaction
from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Lease, Report, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.workers import register_worker
from tuner_service.reads.history import load_history
from tuner_service.reads.studies import get_study
from tuner_service.reads.trials import best_trials, coverage, get_trial, list_trials
from tuner_service.reads.views import Failure
from tuner_service.storage import Database
from tuner_service.storage.schema import slots, studies

LOST = Failure(kind="worker_lost", message="the trainer died")


def slot(db: Database, lease: Lease) -> Any:
    with db.read() as connection:
        return connection.execute(select(slots).where(slots.c.id == lease.slot_id)).mappings().one()


def use_up(db: Database, seconds: float) -> None:
    """Let a study have worked for so long."""
    with db.write() as connection:
        connection.execute(
            update(studies)
            .where(studies.c.started_at.is_not(None))
            .values(started_at=studies.c.started_at - seconds)
        )


# -- hopeless studies ---------------------------------------------------------------------------


@pytest.mark.parametrize("reported", [False, True])
def test_a_hopeless_failure_ends_the_study_that_has_nothing(
    db: Database, hand: Hand, reported: bool
) -> None:
    study = submitted(db, budget={"trials": 5, "max_failures": 5})
    first, second = hand.claim(2).leases
    trial, other = hand.start(first), hand.start(second)
    if reported:
        hand.report(second, other, 1)
    failure = Failure(kind="user_code", message="TypeError: no")
    fail = Fail(
        first, trial, failure, blamed=True, nothing_trains="no\0\udc80" + 9_000 * "!" + "(lower it)"
    )
    flushed = hand.flush(fails=[fail], renew=[second])
    view = get_study(db, study.id)
    if reported:
        assert (view.state, flushed.stop) == ("running", {})
        assert (view.progress.failed, view.progress.open) == (0, 4)  # it is tried again
    else:
        assert view.state == "failed"
        assert (view.reason or "").startswith("no\ufffd\ufffd!")
        assert (view.reason or "").endswith("!(lower it)")
        assert len(view.reason or "") < 5_000
        assert flushed.stop == {second.key: "cancelled"}
        assert (view.progress.failed, view.progress.cancelled) == (1, 3)
    check_invariants(db, settings=SETTINGS)


def registered(db: Database, *names: str, host: str = "one") -> None:
    for name in names:
        register_worker(
            db,
            worker_id=name,
            host=host,
            pid=1,
            queue="cpu",
            device="cpu",
            version="0",
            lanes=8,
        )


@pytest.mark.parametrize(("host", "state"), [("one", "failed"), ("another", "running")])
def test_what_cannot_be_trained_here_may_be_trained_on_another_machine(
    db: Database, hand: Hand, host: str, state: str
) -> None:
    registered(db, hand.name)
    registered(db, "other", host=host)
    other = Hand(db, "other")
    study = submitted(db, budget={"trials": 4, "max_failures": 4})
    lease, trial = hand.claim_and_start()
    other.claim_and_start()
    failure = Failure(kind="user_code", message="ModuleNotFoundError: no")
    hand.flush(fails=[Fail(lease, trial, failure, blamed=True, retry=False, nothing_trains="no")])
    assert get_study(db, study.id).state == state


def test_a_result_in_the_same_flush_is_hope(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 4, "max_failures": 4})
    good, bad = hand.claim(2).leases
    trials = hand.start(good), hand.start(bad)
    failure = Failure(kind="user_code", message="TypeError: no")
    hand.flush(
        finishes=[Finish(good, trials[0], "COMPLETE", (0.9,), {})],
        fails=[Fail(bad, trials[1], failure, blamed=True, retry=False, nothing_trains="no")],
    )
    view = get_study(db, study.id)
    assert (view.state, view.progress.done, view.progress.failed) == ("running", 1, 1)


def test_a_zombies_word_ends_no_study(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial = hand.claim_and_start()
    expire(db, lease)
    reconcile(db, settings=SETTINGS)
    failure = Failure(kind="user_code", message="TypeError: no")
    hand.flush(fails=[Fail(lease, trial, failure, blamed=True, nothing_trains="no")])
    assert get_study(db, study.id).state == "running"


# -- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_final_value_that_is_no_number_ends_as_diverged(
    db: Database, hand: Hand, bad: float
) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.report(lease, trial_id, 1)
    assert not hand.finish(lease, trial_id, bad).lost
    view = get_trial(db, study.id, 0)
    assert (view.state, view.value) == ("PRUNED", 0.1)
    assert view.failure is not None
    assert view.failure.kind == "diverged"
    assert "finite" in view.failure.message
    assert get_study(db, study.id).progress.pruned == 1
    check_invariants(db, settings=SETTINGS)


def test_a_pruned_trial_keeps_its_last_finite_value(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    values = {1: 0.4, 2: 0.3, 3: math.nan, 4: math.inf}
    hand.flush(reports=[Report(lease, trial_id, s, v, {"loss": v}) for s, v in values.items()])
    hand.flush(finishes=[Finish(lease, trial_id, "PRUNED", None, {})])
    bare, bare_trial = hand.claim_and_start()
    hand.flush(finishes=[Finish(bare, bare_trial, "PRUNED", None, {})])
    with plain_optuna(db.url) as storage:
        first, second = optuna.load_study(study_name=study.name, storage=storage).trials
    assert first.value == 0.3
    assert math.isnan(first.intermediate_values[3])
    assert second.value is None
    records = get_trial(db, study.id, 0).epochs or []
    assert [record["loss"] for record in records] == [0.4, 0.3, None, None]
    check_invariants(db, settings=SETTINGS)


def test_a_curve_told_again_is_told_anew(db: Database, hand: Hand) -> None:
    """A trial that goes on from an earlier checkpoint repeats steps; the later word stands."""
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.report(lease, trial_id, 1, 2, 3)
    hand.flush(hand_backs=[HandBack(lease, 1)])
    (again,) = hand.claim().leases
    hand.flush(reports=[Report(again, trial_id, 2, 0.9, {"step": 2, "again": True})])
    with plain_optuna(db.url) as storage:
        trial = optuna.load_study(study_name=study.name, storage=storage).trials[0]
    assert trial.intermediate_values == pytest.approx({1: 0.1, 2: 0.9, 3: 0.3})
    assert (get_trial(db, study.id, 0).epochs or [])[1] == {"step": 2, "again": True}


def test_a_retry_takes_over_the_curve_up_to_its_checkpoint(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.report(lease, trial_id, 1, 2, 3)
    hand.flush(checkpoints=[(lease, 2)])
    hand.fail(lease, trial_id)
    hand.claim_and_start()
    assert [record["step"] for record in get_trial(db, study.id, 1).epochs or []] == [1, 2]
    with plain_optuna(db.url) as storage:
        trial = optuna.load_study(study_name=study.name, storage=storage).trials[1]
    assert trial.intermediate_values == pytest.approx({1: 0.1, 2: 0.2})


def test_what_plain_optuna_enqueued_does_not_wait_for_ever(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    with plain_optuna(db.url) as storage:
        optuna.load_study(study_name=study.name, storage=storage).enqueue_trial({"x": 1.0})
    lease, trial_id = hand.claim_and_start()
    assert [t.state for t in list_trials(db, study.id).items] == ["WAITING", "RUNNING"]
    hand.flush(finishes=[Finish(lease, trial_id, "COMPLETE", (0.5,), {})])
    assert get_study(db, study.id).state == "completed"
    enqueued, ours = list_trials(db, study.id).items
    assert (enqueued.state, enqueued.foreign, ours.state) == ("FAIL", True, "COMPLETE")
    with plain_optuna(db.url) as storage:
        told = optuna.load_study(study_name=study.name, storage=storage).trials[0].user_attrs
    assert "under `enqueue` of a definition" in told["failure_message"]
    check_invariants(db, settings=SETTINGS)


def test_kept_models_are_the_best_ones(db: Database, hand: Hand) -> None:
    study = submitted(db, training={"epochs": 1, "keep_models": 2})
    dropped: list[str] = []
    for value in (0.5, 0.9, 0.7, 0.6):
        lease, trial_id = hand.claim_and_start()
        finish = Finish(lease, trial_id, "COMPLETE", (value,), {}, model_path=f"m/{value}")
        dropped += hand.flush(finishes=[finish]).drop_models
    assert dropped == ["m/0.5", "m/0.6"]
    kept = [view.number for view in list_trials(db, study.id).items if view.has_model]
    assert kept == [1, 2]


@pytest.mark.parametrize("together", [True, False])
def test_of_equal_trials_the_lowest_number_is_best_and_keeps_its_model(
    db: Database, hand: Hand, together: bool
) -> None:
    study = submitted(db, training={"epochs": 1, "keep_models": 1}, budget={"trials": 3})
    leases = hand.claim(limit=3).leases
    started = hand.flush(starts=hand.starts(leases)).started
    ids = [started[lease.key].trial_id for lease in leases]
    finishes = [
        Finish(lease, trial_id, "COMPLETE", (0.9,), {}, model_path=f"m/{trial_id}")
        for lease, trial_id in zip(leases, ids, strict=True)
    ]
    finishes.reverse()
    batches = [finishes] if together else [[finish] for finish in finishes]
    dropped = [path for batch in batches for path in hand.flush(finishes=batch).drop_models]
    best = get_study(db, study.id).best_trial
    assert best is not None
    assert best.number == 0
    kept = [trial.number for trial in list_trials(db, study.id).items if trial.has_model]
    assert kept == [0]
    assert sorted(dropped) == sorted(f"m/{trial_id}" for trial_id in ids[1:])


def test_a_pruned_trials_model_gives_way_to_every_complete_one(db: Database, hand: Hand) -> None:
    submitted(db, budget={"trials": 2})
    first, first_trial = hand.claim_and_start()
    hand.report(first, first_trial, 9)
    pruned = Finish(first, first_trial, "PRUNED", None, {}, model_path="pruned")
    assert hand.flush(finishes=[pruned]).drop_models == []
    second, second_trial = hand.claim_and_start()
    complete = Finish(second, second_trial, "COMPLETE", (0.1,), {}, model_path="complete")
    assert hand.flush(finishes=[complete]).drop_models == ["pruned"]


def test_several_objectives_have_a_front_and_no_best(db: Database, hand: Hand) -> None:
    objective = [
        {"metric": "val_accuracy", "direction": "maximize"},
        {"metric": "val_loss", "direction": "minimize"},
    ]
    study = submitted(db, objective=objective, budget={"trials": 3})
    for values in ((0.9, 0.5), (0.8, 0.4), (0.7, 0.6)):
        lease, trial_id = hand.claim_and_start()
        hand.flush(finishes=[Finish(lease, trial_id, "COMPLETE", values, {}, model_path="x")])
    view = get_study(db, study.id)
    assert (view.state, view.best_trial) == ("completed", None)
    assert [trial.values for trial in best_trials(db, study.id)] == [[0.9, 0.5], [0.8, 0.4]]
    kept = [trial.number for trial in list_trials(db, study.id).items if trial.has_model]
    assert kept == [0]
    check_invariants(db, settings=SETTINGS)


def test_what_user_code_says_cannot_poison_a_flush(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    text = "bad\x00text \ud800 " + "x" * 100_000
    failure = Failure(kind="user_code", message=text, traceback=text)
    record = {"note": "nul \x00 and \ud800", "loss": math.nan}
    hand.flush(
        reports=[Report(lease, trial_id, 1, math.nan, record)],
        fails=[Fail(lease, trial_id, failure, blamed=True, retry=False)],
    )
    view = get_trial(db, study.id, 0)
    assert view.failure is not None
    assert view.failure.message.startswith("bad")
    assert len(view.failure.message) <= 4000
    assert (view.epochs or [])[0]["loss"] is None


# -- blame --------------------------------------------------------------------------------------


def test_blamed_attempts_use_up_the_cap(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    for attempt in range(1, SETTINGS.max_attempts + 1):
        lease, trial_id = hand.claim_and_start()
        assert lease.attempt == attempt
        hand.fail(lease, trial_id)
    assert not hand.claim().leases
    view = get_study(db, study.id)
    assert (view.state, view.progress.failed) == ("completed", 1)
    (point,) = coverage(db, study.id).failed_points
    assert point["failure"] == {"kind": "user_code", "message": "boom"}
    assert [t.retry_of for t in list_trials(db, study.id).items] == [None, 0, 1]
    check_invariants(db, settings=SETTINGS)


@pytest.mark.parametrize(
    ("second", "attempts"),
    [
        ({}, 2),  # the same exception at the same step: the third would end so, too
        ({"message": "other"}, 3),
        ({"step": 4}, 3),
        ({"traceback": None}, 3),  # the process died: that may have been another's doing
    ],
)
def test_an_exception_that_repeats_is_not_tried_again(
    db: Database, hand: Hand, second: dict[str, Any], attempts: int
) -> None:
    study = submitted(db, budget={"trials": 1})
    first = Failure(kind="user_code", message="boom", step=3, traceback="Traceback ...")
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id, failure=first)
    lease, trial_id = hand.claim_and_start()
    expire(db, lease)  # a lost worker in between says nothing
    reconcile(db, settings=SETTINGS)
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id, failure=first.model_copy(update=second))
    assert len(hand.claim().leases) == attempts - 2
    assert get_study(db, study.id).progress.failed == 3 - attempts
    check_invariants(db, settings=SETTINGS)


def test_a_study_of_which_all_trials_diverged_says_so(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    diverged = Failure(kind="diverged", message="the training loss became nan", step=1)
    for _ in range(2):
        lease, trial_id = hand.claim_and_start()
        hand.flush(finishes=[Finish(lease, trial_id, "PRUNED", None, {}, failure=diverged)])
    view = get_study(db, study.id)
    assert (view.state, view.best_trial) == ("completed", None)
    assert view.reason == (
        "no trial has a result: 2 diverged (lower the learning rate, or clip the gradients)"
    )


def test_what_a_timeout_stopped_is_the_best_where_nothing_is_complete(
    db: Database, hand: Hand
) -> None:
    study = submitted(db, budget={"trials": 4})
    late = Failure(kind="timeout", message="Stopped at the study's timeout.")
    for value, failure in ((0.4, late), (0.9, None), (0.6, late)):  # 0.9 was pruned
        lease, trial_id = hand.claim_and_start()
        hand.flush(finishes=[Finish(lease, trial_id, "PRUNED", (value,), {}, failure=failure)])
    for best in (get_study(db, study.id).best_trial, best_trials(db, study.id)[0]):
        assert best is not None
        assert best.value == 0.6
    hand.finish(*hand.claim_and_start(), 0.1)
    (best,) = best_trials(db, study.id)
    assert best.value == 0.1


def test_a_failure_that_is_not_retried_fails_the_slot_at_once(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id, retry=False)
    assert get_study(db, study.id).progress.failed == 1


def test_two_deaths_alone_fail_the_slot(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    for _ in range(2):
        lease, trial_id = hand.claim_and_start()
        hand.fail(lease, trial_id, failure=LOST, blamed=False, shared_death=True)
    for expected in (0, 1):
        assert get_study(db, study.id).progress.failed == 0, expected
        lease, trial_id = hand.claim_and_start()
        assert lease.exclusive
        hand.fail(lease, trial_id)
    assert get_study(db, study.id).progress.failed == 1
    assert slot(db, lease)["failure_kind"] == "user_code"


def test_lost_workers_blame_nobody_but_not_for_ever(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    for lost in range(1, LOST_LEASES + 1):
        lease, _ = hand.claim_and_start()
        assert lease.exclusive == (lost > LOST_LEASES_BEFORE_ALONE)
        expire(db, lease)
        assert reconcile(db, settings=SETTINGS).reaped == 1
        assert slot(db, lease)["blamed_attempts"] == 0
    assert get_study(db, study.id).progress.failed == 1
    assert slot(db, lease)["failure_kind"] == "worker_lost"
    check_invariants(db, settings=SETTINGS)


def test_data_that_cannot_be_read_fails_the_study(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 9, "max_failures": 5})
    (one, two) = hand.claim(2).leases
    first, second = hand.start(one), hand.start(two)
    failure = Failure(kind="data", message="column 'y' is missing")
    hand.fail(one, first, failure=failure, retry=False)
    view = get_study(db, study.id)
    assert (view.state, view.reason) == ("failed", "the data cannot be used: column 'y' is missing")
    assert hand.flush(renew=[two]).stop == {two.key: "cancelled"}
    hand.fail(two, second, failure=Failure(kind="cancelled", message="x"), retry=False)
    progress = get_study(db, study.id).progress
    assert (progress.failed, progress.cancelled, progress.leased) == (1, 8, 0)
    check_invariants(db, settings=SETTINGS)


def test_max_failures_names_the_kinds(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 9, "max_failures": 1})
    for kind in ("user_code", "timeout"):
        lease, trial_id = hand.claim_and_start()
        failure = Failure(kind=kind, message="x")  # type: ignore[arg-type]
        hand.fail(lease, trial_id, failure=failure, retry=False)
    reason = get_study(db, study.id).reason or ""
    assert "1 × timeout" in reason
    assert "1 × user_code" in reason
    assert "max_failures=1" in reason


def test_a_lowered_max_failures_takes_effect_at_once(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 9, "max_failures": 1})
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id, retry=False)
    assert patch(db, study.id, StudyPatch(max_failures=0), settings=SETTINGS).state == "failed"
    check_invariants(db, settings=SETTINGS)


def test_retries_back_off(db: Database, hand: Hand) -> None:
    settings = SETTINGS.model_copy(update={"retry_backoff_seconds": 40.0})
    submitted(db, budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    expire(db, lease)
    with db.read() as connection:
        now = db.now(connection)
    reconcile(db, settings=settings)
    assert 39.0 < slot(db, lease)["not_before"] - now < 60.0
    assert not hand.claim().leases


@pytest.mark.parametrize("seconds", [600, 3600, 86400])
def test_a_clock_that_was_set_back_strands_nothing(
    db: Database, hand: Hand, seconds: float
) -> None:
    """It must not keep a lost worker's slot for as long as the clock went back."""
    study = submitted(db, budget={"trials": 2})
    one, two = hand.claim(2).leases
    hand.start(one)
    hand.fail(two, hand.start(two))
    with db.write() as connection:  # as if written before
        later = db.now(connection) + seconds
        connection.execute(
            update(slots).where(slots.c.id == one.slot_id).values(lease_expires_at=later)
        )
        connection.execute(update(slots).where(slots.c.id == two.slot_id).values(not_before=later))
    assert reconcile(db, settings=SETTINGS).reaped == 0
    with db.read() as connection:
        left = slot(db, one)["lease_expires_at"] - db.now(connection)
    assert left <= SETTINGS.lease_seconds
    jump(db, left + 0.1)
    assert reconcile(db, settings=SETTINGS).reaped == 1
    for lease in hand.claim(2).leases:
        hand.finish(lease, hand.start(lease), 0.5)
    assert get_study(db, study.id).state == "completed"
    check_invariants(db, settings=SETTINGS)


@pytest.mark.parametrize("seconds", [60, 3 * 3600])
def test_a_clock_that_was_set_back_takes_nothing_from_a_worker_that_lives(
    db: Database, hand: Hand, seconds: float
) -> None:
    """Whoever reconciles first: its heartbeat and its leases are from before."""
    submitted(db, budget={"trials": 1})
    registered(db, hand.name)
    lease, trial_id = hand.claim_and_start()
    jump(db, -seconds)
    for _ in range(2):
        assert reconcile(db, settings=SETTINGS).reaped == 0
    assert hand.flush(renew=[lease]).lost == set()
    with db.read() as connection:
        assert 29 < slot(db, lease)["lease_expires_at"] - db.now(connection) < 31
    assert hand.finish(lease, trial_id, 0.5).lost == set()


def test_a_lease_longer_than_the_reconcilers_is_renewed_and_not_reaped(
    db: Database, hand: Hand
) -> None:
    submitted(db, budget={"trials": 1})
    (lease,) = hand.claim(lease_seconds=120.0).leases
    assert reconcile(db, settings=SETTINGS).reaped == 0
    jump(db, 16)
    assert reconcile(db, settings=SETTINGS).reaped == 0
    assert hand.flush(lease_seconds=120.0, renew=[lease]).lost == set()
    with db.read() as connection:
        assert slot(db, lease)["lease_expires_at"] > db.now(connection) + 110


def test_a_clock_that_was_set_back_holds_no_handed_back_slot(db: Database, hand: Hand) -> None:
    submitted(db, budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    hand.flush(hand_backs=[HandBack(lease, 1)])
    with db.write() as connection:  # as if handed back a little before
        connection.execute(
            update(slots).where(slots.c.not_before > 0).values(not_before=slots.c.not_before + 250)
        )
    assert hand.claim().leases


def test_a_grids_budget_cannot_be_raised(db: Database) -> None:
    parameters = {"optimizer": {"type": "categorical", "choices": ["sgd", "adam"]}}
    study = submitted(db, parameters=parameters, sampler={"type": "grid"}, budget={})
    with pytest.raises(InputError, match="grid"):
        patch(db, study.id, StudyPatch(trials=3), settings=SETTINGS)
    check_invariants(db, settings=SETTINGS)


# -- timeouts -----------------------------------------------------------------------------------


def test_a_timeout_stops_what_runs_and_keeps_what_it_has(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 4, "timeout": 100})
    leases = hand.claim(3).leases
    first, second = hand.start(leases[0]), hand.start(leases[1])
    hand.report(leases[0], first, 1, 2)
    use_up(db, 101)
    flushed = hand.flush(starts=[Start(leases[2], leases[2].parameters or {})], renew=leases[:2])
    assert flushed.started == {}
    assert set(flushed.stop.values()) == {"timeout"}
    assert len(flushed.stop) == 3
    assert not hand.claim().leases
    over = Failure(kind="timeout", message="over")
    hand.flush(
        finishes=[Finish(leases[0], first, "PRUNED", None, {}, failure=over)],
        hand_backs=[HandBack(leases[1], None), HandBack(leases[2], None)],
    )
    view = get_study(db, study.id)
    assert (view.state, view.reason) == ("completed", "timeout")
    assert (view.progress.done, view.progress.cancelled) == (2, 2)
    states = {t.trial_id: (t.state, t.value) for t in list_trials(db, study.id).items}
    assert states == {first: ("PRUNED", 0.2), second: ("PRUNED", None)}
    assert (
        load_history(db, leases[0].study_id, after_trial_id=0, unfinished=())[0].constraints == {}
    )
    check_invariants(db, settings=SETTINGS)


def test_the_reconciler_ends_a_study_whose_time_is_up(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2, "timeout": 100})
    lease, trial_id = hand.claim_and_start()
    hand.finish(lease, trial_id, 0.5)
    assert reconcile(db, settings=SETTINGS).finished == []
    use_up(db, 101)
    assert reconcile(db, settings=SETTINGS).finished == [study.id]
    assert get_study(db, study.id).reason == "timeout"
    check_invariants(db, settings=SETTINGS)


def test_a_timeout_counts_no_pauses_and_nothing_before_the_first_trial(
    db: Database, hand: Hand
) -> None:
    study = submitted(db, budget={"trials": 3, "timeout": 100})
    lease, trial_id = hand.claim_and_start()
    hand.finish(lease, trial_id, 0.5)
    use_up(db, 60)
    pause(db, study.id)
    with db.write() as connection:  # an hour passes
        connection.execute(
            update(studies).values(
                started_at=studies.c.started_at - 3600, paused_at=studies.c.paused_at - 3600
            )
        )
    assert reconcile(db, settings=SETTINGS).finished == []
    resume(db, study.id)
    (claimed,) = hand.claim().studies.values()
    assert claimed.remaining_seconds == pytest.approx(40, abs=15)


def test_a_raised_timeout_opens_the_cancelled_slots_again(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 3, "timeout": 100})
    lease, trial_id = hand.claim_and_start()
    hand.finish(lease, trial_id, 0.5)
    use_up(db, 150)
    reconcile(db, settings=SETTINGS)
    with pytest.raises(ConflictError, match="more time"):
        patch(db, study.id, StudyPatch(trials=5), settings=SETTINGS)
    view = patch(db, study.id, StudyPatch(timeout=90), settings=SETTINGS)
    assert view.state == "completed"
    view = patch(db, study.id, StudyPatch(timeout=1000, trials=4), settings=SETTINGS)
    assert (view.state, view.reason, view.finished_at) == ("running", "waiting for a worker", None)
    assert (view.progress.open, view.progress.total) == (3, 4)
    check_invariants(db, settings=SETTINGS)
    assert len(hand.claim(9).leases) == 3


# -- cancel and pause, with what is under way -----------------------------------------------------


def test_a_cancel_ends_handed_back_trials_at_once(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    pause(db, study.id)
    hand.flush(hand_backs=[HandBack(lease, 1)])
    cancel(db, study.id)
    (view,) = list_trials(db, study.id).items
    assert (view.trial_id, view.state) == (trial_id, "FAIL")
    assert view.failure is not None
    assert view.failure.kind == "cancelled"
    check_invariants(db, settings=SETTINGS)


def test_a_cancelled_trial_whose_worker_is_gone_is_reaped_as_cancelled(
    db: Database, hand: Hand
) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, _ = hand.claim_and_start()
    cancel(db, study.id)
    expire(db, lease)
    assert reconcile(db, settings=SETTINGS).reaped == 1
    failure = get_trial(db, study.id, 0).failure
    assert failure is not None
    assert failure.kind == "cancelled"
    progress = get_study(db, study.id).progress
    assert (progress.cancelled, progress.leased) == (2, 0)
    check_invariants(db, settings=SETTINGS)


def test_a_result_that_arrives_after_the_cancel_is_kept(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    cancel(db, study.id)
    assert not hand.finish(lease, trial_id, 0.5).lost
    view = get_study(db, study.id)
    assert (view.state, view.progress.done, view.progress.cancelled) == ("cancelled", 1, 1)
    assert view.best_trial is not None
    check_invariants(db, settings=SETTINGS)


def test_a_start_in_a_paused_study_makes_no_trial(db: Database, hand: Hand) -> None:
    study = submitted(db)
    (lease,) = hand.claim().leases
    pause(db, study.id)
    flushed = hand.flush(starts=[Start(lease, lease.parameters or {})])
    assert (flushed.started, flushed.stop) == ({}, {lease.key: "paused"})
    hand.flush(hand_backs=[HandBack(lease, None)])
    assert list_trials(db, study.id).items == []
    check_invariants(db, settings=SETTINGS)


def test_a_refused_start_stays_refused_when_sent_again(db: Database, hand: Hand) -> None:
    study = submitted(db)
    (lease,) = hand.claim().leases
    cancel(db, study.id)
    for _ in range(2):
        assert hand.flush(starts=[Start(lease, lease.parameters or {})]).lost == {lease.key}


def test_a_slots_parameters_are_fixed_once(db: Database, hand: Hand) -> None:
    study = submitted(db, sampler={"type": "tpe"}, budget={"trials": 2})
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id)
    again = hand.claim().leases[0]
    assert again.parameters == {"learning_rate": 0.01}
    other = Start(again, {"learning_rate": 0.02})
    assert hand.flush(starts=[other]).lost == {again.key}
    assert len(list_trials(db, study.id).items) == 1
    assert hand.flush(starts=[Start(again, again.parameters)]).started
    check_invariants(db, settings=SETTINGS)


def test_a_lease_speaks_for_its_own_trial_only(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    one, two = hand.claim(2).leases
    first, second = hand.start(one), hand.start(two)
    hand.report(one, second, 1)
    hand.finish(one, second, 0.9)
    views = list_trials(db, study.id).items
    assert [(view.trial_id, view.state, view.last_step) for view in views] == [
        (first, "RUNNING", None),
        (second, "RUNNING", None),
    ]
    check_invariants(db, settings=SETTINGS)


@pytest.mark.parametrize("meanwhile", ["fencing_token", "state"])
def test_no_update_of_a_slot_goes_by_what_was_read(
    db: Database, hand: Hand, meanwhile: str
) -> None:
    """Behind the locks: what read the slot before it was leased anew, or ended, changes nothing."""
    submitted(db, budget={"trials": 1})
    lease, _ = hand.claim_and_start()
    change: dict[str, Any] = {"fencing_token": slots.c.fencing_token + 1, "state": "failed"}
    with db.write() as connection:
        unit = FlushTransaction(
            db, connection, worker_id=hand.name, leases=[lease], settings=SETTINGS
        )
        connection.execute(update(slots).values({meanwhile: change[meanwhile]}))
        unit.update_slots(
            [{"id": lease.slot_id, "fencing_token": lease.fencing_token, "state": "done"}]
        )
        states = connection.execute(select(slots.c.state)).scalars().all()
    assert states == ["failed" if meanwhile == "state" else "leased"]


def test_a_lease_is_its_own_workers(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    other = Hand(db, "worker-2")
    assert other.finish(lease, trial_id, 0.5).lost == {lease.key}
    assert get_trial(db, study.id, 0).state == "RUNNING"
    assert hand.flush(renew=[lease]).lost == set()


def test_an_old_lease_of_a_slot_does_not_spoil_its_new_one(db: Database, hand: Hand) -> None:
    """A worker may hold two leases of one slot, not knowing yet that it lost the first."""
    submitted(db, budget={"trials": 1})
    old, old_trial = hand.claim_and_start()
    expire(db, old)
    reconcile(db, settings=SETTINGS)
    new, new_trial = hand.claim_and_start()
    flushed = hand.flush(
        fails=[Fail(old, old_trial, LOST, blamed=True)],
        reports=[Report(new, new_trial, 1, 0.1, {})],
        renew=[new, old],
    )
    assert flushed.lost == {old.key}
    assert slot(db, new)["state"] == "leased"
    assert not hand.finish(new, new_trial, 0.4).lost
    check_invariants(db, settings=SETTINGS)


# -- other programs -------------------------------------------------------------------------------


def tell(url: str, study: str, number: int, **what: Any) -> None:
    with plain_optuna(url) as storage:
        optuna.load_study(study_name=study, storage=storage).tell(number, **what)


@pytest.mark.parametrize("asked", ["report", "finish", "fail", "hand_back", "renew", "reap"])
@pytest.mark.parametrize(
    ("what", "state", "done"),
    [
        ({"values": 0.7}, "COMPLETE", True),
        ({"state": TrialState.PRUNED}, "PRUNED", True),
        ({"state": TrialState.FAIL}, "FAIL", False),
    ],
)
def test_a_trial_ended_by_plain_optuna_stands(
    db: Database, hand: Hand, asked: str, what: dict[str, Any], state: str, done: bool
) -> None:
    study = submitted(db, budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.report(lease, trial_id, 1)
    tell(db.url, study.name, 0, **what)
    if asked == "reap":
        expire(db, lease)
        assert reconcile(db, settings=SETTINGS).reaped == 1
    else:
        parts: dict[str, dict[str, Any]] = {
            "report": {"reports": [Report(lease, trial_id, 2, 0.9, {})]},
            "finish": {"finishes": [Finish(lease, trial_id, "COMPLETE", (0.1,), {})]},
            "fail": {"fails": [Fail(lease, trial_id, LOST, blamed=True)]},
            "hand_back": {"hand_backs": [HandBack(lease, 1)]},
            "renew": {"renew": [lease]},
        }
        assert hand.flush(**parts[asked]).lost == {lease.key}
    view = get_study(db, study.id)
    assert view.state == "completed"
    assert (view.progress.done, view.progress.failed) == ((1, 0) if done else (0, 1))
    (trial,) = list_trials(db, study.id).items
    assert trial.state == state
    assert (view.best_trial is not None) == (state == "COMPLETE")
    check_invariants(db, settings=SETTINGS)


def test_a_handed_back_trial_ended_by_plain_optuna_stands(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    lease, _ = hand.claim_and_start()
    pause(db, study.id)
    hand.flush(hand_backs=[HandBack(lease, 1)])
    tell(db.url, study.name, 0, values=0.7)
    view = cancel(db, study.id)
    assert (view.progress.done, view.progress.cancelled) == (1, 1)
    check_invariants(db, settings=SETTINGS)


def test_trials_of_plain_optuna_are_shown_and_use_no_budget(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 2})
    one, one_trial = hand.claim_and_start()
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study.name, storage=storage)
        trial = plain.ask()
        trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        plain.tell(trial, 0.9)
    two, two_trial = hand.claim_and_start()
    hand.finish(one, one_trial, 0.5)
    hand.finish(two, two_trial, 0.6)
    assert get_study(db, study.id).progress.done == 2
    assert [t.number for t in list_trials(db, study.id).items] == [0, 1, 2]
    assert get_trial(db, study.id, 1).value == 0.9
    own = [t.own for t in load_history(db, one.study_id, after_trial_id=0, unfinished=())]
    assert own == [True, False, True]
    check_invariants(db, settings=SETTINGS)
