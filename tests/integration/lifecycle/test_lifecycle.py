"""One slot's way through the lifecycle, on both databases."""

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
from tests.invariants import check_invariants
from tuner_service.errors import ConflictError, IdempotencyError
from tuner_service.lifecycle import change
from tuner_service.lifecycle import submit as submitting
from tuner_service.lifecycle.change import StudyPatch, cancel, patch, pause, resume
from tuner_service.lifecycle.delete import delete
from tuner_service.lifecycle.messages import Fail, Finish, HandBack, Report, Start
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.slot_rows import slot_rows
from tuner_service.lifecycle.submit import submit
from tuner_service.reads.history import load_history
from tuner_service.reads.studies import get_study, list_studies
from tuner_service.reads.trials import (
    best_trials,
    coverage,
    export_rows,
    get_trial,
    list_trials,
)
from tuner_service.reads.views import Failure, StudyView
from tuner_service.storage import Database
from tuner_service.storage.schema import slots
from tuner_service.storage.schema import studies as table


def test_a_study_runs_to_its_end_and_plain_optuna_reads_it(db: Database, hand: Hand) -> None:
    study = submitted(db)
    values = [0.5, 0.9, 0.7, 0.6]
    for index, value in enumerate(values):
        (lease,) = hand.claim().leases
        trial_id = hand.start(lease)
        reports = [
            Report(lease, trial_id, step, value * step / 3, {"step": step}) for step in (1, 2, 3)
        ]
        hand.flush(reports=reports)
        assert get_study(db, study.name).progress.leased == 1
        hand.finish(lease, trial_id, value)
        assert get_study(db, study.id).progress.done == index + 1
        check_invariants(db, settings=SETTINGS)
    ended = get_study(db, study.id)
    assert ended.state == "completed"
    assert ended.best_trial is not None
    assert ended.best_trial.value == 0.9
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study.name, storage=storage)
        assert [trial.value for trial in plain.trials] == values
        curve = plain.trials[0].intermediate_values
        assert curve == pytest.approx({1: 0.5 / 3, 2: 1 / 3, 3: 0.5})
        assert plain.best_trial.number == 1
    assert [row["value"] for row in export_rows(db, study.id)] == values
    assert len(get_trial(db, study.id, 2).epochs or []) == 3
    assert not hand.claim().leases


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_drawn_parameters_are_fixed_at_submit(db: Database, hand: Hand, sampler: str) -> None:
    submitted(db, sampler={"type": sampler})
    first = [lease.parameters for lease in hand.claim(4).leases]
    submitted(db, name="again", sampler={"type": sampler})
    assert [lease.parameters for lease in hand.claim(4).leases] == first
    assert len({str(parameters) for parameters in first}) == 4


def test_parallel_trials_bounds_the_leases(db: Database, hand: Hand) -> None:
    submitted(db, resources={"parallel_trials": 3})
    assert len(hand.claim(10).leases) == 3
    assert not hand.claim(10).leases


def test_two_studies_share_the_lanes(db: Database, hand: Hand) -> None:
    one, two = submitted(db), submitted(db, name="other")
    leases = hand.claim(4).leases
    assert sorted(lease.study_id for lease in leases) == sorted(2 * list(hand_ids(db, one, two)))


def hand_ids(db: Database, *studies: StudyView) -> list[int]:
    with db.read() as connection:
        query = select(table.c.id).where(table.c.public_id.in_([s.id for s in studies]))
        return list(connection.execute(query).scalars())


def test_an_expired_lease_is_reaped_and_retried_with_its_curve(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    (lease,) = hand.claim(lease_seconds=-1.0).leases
    flushed = hand.flush(lease_seconds=-1.0, starts=[Start(lease, lease.parameters or {})])
    trial_id = flushed.started[lease.key].trial_id
    reports = [Report(lease, trial_id, step, 0.1 * step, {"step": step}) for step in (1, 2)]
    hand.flush(lease_seconds=-1.0, reports=reports, checkpoints=[(lease, 1)])
    assert reconcile(db, settings=SETTINGS).reaped == 1
    assert reconcile(db, settings=SETTINGS).reaped == 0
    zombie = hand.finish(lease, trial_id, 1.0)
    assert zombie.lost == {lease.key}
    check_invariants(db, settings=SETTINGS)
    other = Hand(db, "worker-2")
    (again,) = other.claim().leases
    assert (again.attempt, again.checkpoint_step, again.parameters) == (2, 1, lease.parameters)
    second = other.start(again)
    retried = get_trial(db, study.id, 1)
    assert retried.retry_of == 0
    assert [epoch["step"] for epoch in retried.epochs or []] == [1]
    lost = get_trial(db, study.id, 0)
    assert lost.state == "FAIL"
    assert lost.failure is not None
    assert lost.failure.kind == "worker_lost"
    other.finish(again, second, 0.4)
    assert get_study(db, study.id).state == "completed"
    check_invariants(db, settings=SETTINGS)


def test_blamed_attempts_fail_the_slot_and_too_many_fail_the_study(
    db: Database, hand: Hand
) -> None:
    study = submitted(db, budget={"trials": 3, "max_failures": 1})
    failure = Failure(kind="user_code", message="boom")
    for _ in range(2 * SETTINGS.max_attempts):
        (lease,) = hand.claim().leases
        trial_id = hand.start(lease)
        hand.flush(fails=[Fail(lease, trial_id, failure, blamed=True)])
        check_invariants(db, settings=SETTINGS)
    ended = get_study(db, study.id)
    assert ended.state == "failed"
    assert "2 × user_code" in (ended.reason or "")
    assert coverage(db, study.id).failed == 2


def test_a_diverged_trial_is_pruned_and_infeasible(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    (lease,) = hand.claim().leases
    trial_id = hand.start(lease)
    failure = Failure(kind="diverged", message="loss is nan", step=2)
    hand.flush(
        reports=[Report(lease, trial_id, 1, 0.3, {"step": 1})],
        finishes=[Finish(lease, trial_id, "PRUNED", None, {}, failure=failure)],
    )
    with plain_optuna(db.url) as storage:
        plain = optuna.load_study(study_name=study.name, storage=storage).trials[0]
    assert plain.state is optuna.trial.TrialState.PRUNED
    assert plain.value == 0.3
    assert plain.constraints == {"diverged": 1.0}
    view = get_trial(db, study.id, 0)
    assert view.failure is not None
    assert view.failure.step == 2
    assert get_study(db, study.id).best_trial is None
    (trial,) = load_history(db, lease.study_id, after_trial_id=0, unfinished=())
    assert trial.constraints == {"diverged": 1.0}


def test_pause_hands_back_and_resume_continues_the_same_trial(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    (lease,) = hand.claim().leases
    trial_id = hand.start(lease)
    assert pause(db, study.id).state == "paused"
    assert hand.flush(renew=[lease]).stop == {lease.key: "paused"}
    hand.flush(hand_backs=[HandBack(lease, 1)])
    assert not hand.claim().leases
    assert resume(db, study.id).state == "running"
    (again,) = Hand(db, "worker-2").claim().leases
    assert (again.trial_id, again.checkpoint_step, again.attempt) == (trial_id, 1, 1)
    Hand(db, "worker-2").finish(again, trial_id, 0.5)
    assert get_study(db, study.id).state == "completed"
    check_invariants(db, settings=SETTINGS)


def test_after_a_cancel_no_trial_starts(db: Database, hand: Hand) -> None:
    study = submitted(db)
    running, claimed = hand.claim(2).leases
    trial_id = hand.start(running)
    assert cancel(db, study.id).state == "cancelled"
    flushed = hand.flush(starts=[Start(claimed, claimed.parameters or {})], renew=[running])
    assert flushed.started == {}
    assert claimed.key in flushed.lost
    assert flushed.stop == {running.key: "cancelled"}
    failure = Failure(kind="cancelled", message="cancelled")
    hand.flush(fails=[Fail(running, trial_id, failure, blamed=False, retry=False)])
    progress = get_study(db, study.id).progress
    assert (progress.cancelled, progress.open, progress.leased) == (4, 0, 0)
    with pytest.raises(ConflictError):
        resume(db, study.id)
    assert cancel(db, study.id).state == "cancelled"
    check_invariants(db, settings=SETTINGS)


def test_a_raised_budget_runs_a_completed_study_again(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1})
    (lease,) = hand.claim().leases
    hand.finish(lease, hand.start(lease), 0.5)
    view = patch(db, study.id, StudyPatch(trials=3), settings=SETTINGS)
    assert (view.state, view.progress.open, view.progress.total) == ("running", 2, 3)
    assert view.definition["budget"]["trials"] == 3
    assert len(hand.claim(9).leases) == 2
    check_invariants(db, settings=SETTINGS)


def test_a_large_raise_is_written_in_parts_that_others_may_write_between(
    db: Database, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = submitted(db, budget={"trials": 2})
    monkeypatch.setattr(change, "SLOTS_PER_PART", 3)
    seen: list[int] = []

    def others(_: float) -> None:
        check_invariants(db, settings=SETTINGS)
        seen.append(get_study(db, study.id).progress.total)
        if len(seen) == 1:
            patch(db, study.id, StudyPatch(trials=9, priority=7), settings=SETTINGS)
        hand.claim(1)

    monkeypatch.setattr(change.time, "sleep", others)
    view = patch(db, study.id, StudyPatch(trials=13, priority=2), settings=SETTINGS)
    assert seen == [8, 12, 13]
    assert (view.progress.total, view.priority) == (13, 7)
    with db.read() as connection:
        rows = connection.execute(select(slots.c.number, slots.c.parameters)).all()
    fresh = slot_rows(definition(), first=0, count=13)
    assert sorted(rows) == [(row["number"], row["parameters"]) for row in fresh]
    check_invariants(db, settings=SETTINGS)


def test_a_raise_that_is_cut_off_goes_on_when_asked_again(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = submitted(db, budget={"trials": 2})
    monkeypatch.setattr(change, "SLOTS_PER_PART", 3)

    def cut_off(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(change.time, "sleep", cut_off)
        with pytest.raises(KeyboardInterrupt):
            patch(db, study.id, StudyPatch(trials=13), settings=SETTINGS)
    assert 2 < get_study(db, study.id).progress.total < 13
    check_invariants(db, settings=SETTINGS)
    assert patch(db, study.id, StudyPatch(trials=13), settings=SETTINGS).progress.open == 13
    assert patch(db, study.id, StudyPatch(trials=13), settings=SETTINGS).progress.open == 13
    check_invariants(db, settings=SETTINGS)


def test_slots_are_drawn_before_the_writer_is_taken(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = submitted(db)

    def draws(*args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        monkeypatch.undo()
        assert pause(db, study.id).state == "paused"  # would wait for a lock that is held
        patch(db, study.id, StudyPatch(trials=6), settings=SETTINGS)  # and what was drawn is old
        return slot_rows(*args, **kwargs)

    monkeypatch.setattr(change, "slot_rows", draws)
    view = patch(db, study.id, StudyPatch(trials=8), settings=SETTINGS)
    assert (view.state, view.progress.total) == ("paused", 8)
    check_invariants(db, settings=SETTINGS)


def test_submit_is_idempotent_by_key_and_names_are_made_free(db: Database) -> None:
    first, new = submit(db, definition(), settings=SETTINGS, idempotency_key="k")
    again, newer = submit(db, definition(), settings=SETTINGS, idempotency_key="k")
    assert (first.id, new, newer) == (again.id, True, False)
    other = submit(db, definition(), settings=SETTINGS)[0]
    assert other.name == "small-2"
    assert "taken" in other.warnings[0]
    with pytest.raises(IdempotencyError):
        submit(db, definition(budget={"trials": 9}), settings=SETTINGS, idempotency_key="k")


def test_a_submit_whose_study_is_deleted_meanwhile_is_a_new_one(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = submitted(db)
    with db.read() as connection:
        found = connection.execute(select(table.c.id)).scalar_one()
    pause(db, first.id)
    delete(db, first.id)
    seen = iter([None, found])  # by the first look, and by the second just before the delete
    monkeypatch.setattr(submitting, "_known", lambda *_: next(seen, None))
    again, new = submit(db, definition(), settings=SETTINGS, idempotency_key="k")
    assert new
    assert get_study(db, again.id).name == first.name


def test_lists_are_paged(db: Database, hand: Hand) -> None:
    for index in range(5):
        submitted(db, name=f"s{index}", budget={"trials": 1})
    page = list_studies(db, limit=2)
    names = [view.name for view in page.items]
    while page.next_cursor:
        page = list_studies(db, limit=2, cursor=page.next_cursor)
        names += [view.name for view in page.items]
    assert names == ["s4", "s3", "s2", "s1", "s0"]
    assert "definition" not in page.items[0].model_dump()


def test_trials_sort_by_value(db: Database, hand: Hand) -> None:
    study = submitted(db)
    for value in (0.2, 0.9, 0.9, 0.5):
        (lease,) = hand.claim().leases
        hand.finish(lease, hand.start(lease), value)
    page = list_trials(db, study.id, limit=3, sort="-value")
    more = list_trials(db, study.id, limit=3, sort="-value", cursor=page.next_cursor)
    assert [view.value for view in (*page.items, *more.items)] == [0.9, 0.9, 0.5, 0.2]
    assert [view.number for view in best_trials(db, study.id)] == [1]


def test_a_grid_covers_every_point_once(db: Database, hand: Hand) -> None:
    parameters = {
        "optimizer": {"type": "categorical", "choices": ["sgd", "adam"]},
        "momentum": {"type": "categorical", "choices": [0.0, 0.9], "when": {"optimizer": "sgd"}},
    }
    study = submitted(db, parameters=parameters, sampler={"type": "grid"}, budget={})
    seen = []
    while leases := hand.claim(2).leases:
        for lease in leases:
            seen.append(lease.parameters)
            hand.finish(lease, hand.start(lease), 0.1)
    assert len(seen) == 3
    assert coverage(db, study.id).done == 3
    assert {str(s) for s in seen} == {
        str(s)
        for s in (
            {"optimizer": "sgd", "momentum": 0.0},
            {"optimizer": "sgd", "momentum": 0.9},
            {"optimizer": "adam"},
        )
    }


def test_a_flush_sent_twice_counts_once(db: Database, hand: Hand) -> None:
    study = submitted(db)
    (lease,) = hand.claim().leases
    start = Start(lease, lease.parameters or {})
    first = hand.flush(starts=[start]).started[lease.key]
    assert hand.flush(starts=[start]).started[lease.key] == first
    batch = {
        "reports": [Report(lease, first.trial_id, 1, 0.5, {"step": 1})],
        "finishes": [Finish(lease, first.trial_id, "COMPLETE", (0.5,), {})],
    }
    assert not hand.flush(**batch).lost
    assert not hand.flush(**batch).lost
    assert get_study(db, study.id).progress.done == 1
    check_invariants(db, settings=SETTINGS)


def test_a_lease_is_renewed_once_a_part_of_it_is_over(db: Database, hand: Hand) -> None:
    submitted(db)
    lease, trial_id = hand.claim_and_start()

    def left() -> float:
        with db.read() as connection:
            ends = connection.execute(
                select(slots.c.lease_expires_at).where(slots.c.id == lease.slot_id)
            ).scalar_one()
            return float(ends) - db.now(connection)

    expire(db, lease, seconds=-28.0)  # 28 of 30 seconds are left
    hand.report(lease, trial_id, 1)
    assert left() < 28.0
    expire(db, lease, seconds=-20.0)
    hand.report(lease, trial_id, 2)
    assert 25.0 < left() <= 30.0
    expire(db, lease, seconds=-1000.0)  # of a longer lease, before the setting was changed
    hand.flush(renew=[lease])
    assert 25.0 < left() <= 30.0
