"""Which slots a worker gets: priority, fairness, parallel_trials, devices, and slots that wait."""

from typing import Any

import pytest
from sqlalchemy import select, update

from tests.integration.lifecycle.hands import SETTINGS, Hand, definition, submitted
from tests.invariants import check_invariants
from tuner_service.definition import ModuleDescription
from tuner_service.lifecycle.change import StudyPatch, patch
from tuner_service.lifecycle.claimable import SPARE_STUDIES, exclusive_slot_to_serve
from tuner_service.lifecycle.messages import HandBack, Lease
from tuner_service.lifecycle.reconcile import reconcile
from tuner_service.lifecycle.submit import plan, submit
from tuner_service.lifecycle.workers import publish_modules, register_worker, worker_heartbeat
from tuner_service.reads.studies import get_study
from tuner_service.reads.views import Failure, StudyView
from tuner_service.reads.workers import list_workers, listed_modules
from tuner_service.storage import Database
from tuner_service.storage.schema import slots, studies, workers


def names(db: Database, leases: list[Lease]) -> list[str]:
    with db.read() as connection:
        rows = connection.execute(select(studies.c.id, studies.c.name))
        known = {study_id: name for study_id, name in rows}
    return [known[lease.study_id] for lease in leases]


def worker(db: Database, worker_id: str, queue: str) -> None:
    register_worker(
        db,
        worker_id=worker_id,
        host="here",
        pid=1,
        queue=queue,
        device=queue,
        version="0",
        lanes=1,
    )


def test_the_higher_priority_goes_first(db: Database, hand: Hand) -> None:
    submitted(db, name="low", budget={"trials": 2})
    submitted(db, name="high", budget={"trials": 2}, priority=5)
    assert names(db, hand.claim(3).leases) == ["high", "high", "low"]


def test_fewest_running_goes_first_then_the_oldest(db: Database, hand: Hand) -> None:
    submitted(db, name="old")
    assert names(db, hand.claim(2).leases) == ["old", "old"]
    submitted(db, name="new")
    assert names(db, hand.claim(4).leases) == ["new", "new", "old", "new"]


def test_slots_come_in_the_studys_order_with_enqueued_points_first(
    db: Database, hand: Hand
) -> None:
    submitted(db, sampler={"type": "tpe"}, enqueue=[{"learning_rate": 0.02}])
    leases = hand.claim(3).leases
    assert [lease.number for lease in leases] == [0, 1, 2]
    assert [lease.enqueued for lease in leases] == [{"learning_rate": 0.02}, None, None]


def test_a_study_whose_slots_all_wait_does_not_hide_another(db: Database, hand: Hand) -> None:
    submitted(db, name="waiting", budget={"trials": 1})
    lease, trial_id = hand.claim_and_start()
    hand.fail(lease, trial_id)
    with db.write() as connection:
        connection.execute(update(slots).values(not_before=db.now(connection) + 60))
    submitted(db, name="ready", budget={"trials": 3})
    assert names(db, hand.claim(3).leases) == ["ready"] * 3
    assert not hand.claim(3).leases


def test_many_studies_whose_slots_all_wait_hide_none(db: Database, hand: Hand) -> None:
    for number in range(SPARE_STUDIES + 1):
        submitted(db, name=f"waiting-{number}", budget={"trials": 1})
    with db.write() as connection:
        connection.execute(update(slots).values(not_before=db.now(connection) + 60))
    submitted(db, name="ready", budget={"trials": 1})
    assert names(db, hand.claim().leases) == ["ready"]


def test_excluded_studies_give_nothing(db: Database, hand: Hand) -> None:
    submitted(db)
    (lease,) = hand.claim().leases
    assert not hand.claim(9, exclude_studies={lease.study_id}).leases


def test_a_handed_back_trial_counts_as_running(db: Database) -> None:
    """Its trial is RUNNING: another one beside it would pass parallel_trials."""
    submitted(db, resources={"parallel_trials": 2})
    one, two = Hand(db, "one"), Hand(db, "two")
    leases = one.claim(2).leases
    trials = [one.start(lease) for lease in leases]
    one.flush(hand_backs=[HandBack(leases[1], 1)])
    check_invariants(db, settings=SETTINGS)
    (again,) = two.claim(9).leases
    assert again.trial_id == trials[1]
    assert not two.claim(9).leases
    check_invariants(db, settings=SETTINGS)


def test_handed_back_trials_come_before_fresh_ones(db: Database, hand: Hand) -> None:
    submitted(db)
    leases = hand.claim(3).leases
    trial_id = hand.start(leases[2])
    hand.flush(hand_backs=[HandBack(lease, None) for lease in leases])
    assert [lease.trial_id for lease in hand.claim(3).leases] == [trial_id, None, None]


def shared_death(hand: Hand, lease: Lease, trial_id: int) -> None:
    failure = Failure(kind="worker_lost", message="the trainer died")
    hand.fail(lease, trial_id, failure=failure, blamed=False, shared_death=True)


def test_a_slot_that_must_run_alone_is_claimed_by_itself(db: Database, hand: Hand) -> None:
    submitted(db, budget={"trials": 3})
    for _ in range(2):
        lease, trial_id = hand.claim_and_start()
        assert not lease.exclusive
        shared_death(hand, lease, trial_id)
    others = hand.claim(9, exclude_exclusive=True).leases
    assert [lease.number for lease in others] == [1, 2]
    hand.flush(hand_backs=[HandBack(lease, None) for lease in others])
    (alone,) = hand.claim(9).leases
    assert (alone.number, alone.exclusive, alone.attempt) == (0, True, 3)


def test_a_handed_back_trial_that_must_run_alone_keeps_its_place(db: Database, hand: Hand) -> None:
    """It is RUNNING: another trial beside it would pass parallel_trials."""
    submitted(db, budget={"trials": 3}, resources={"parallel_trials": 1})
    for _ in range(2):
        shared_death(hand, *hand.claim_and_start())
    alone, _ = hand.claim_and_start()
    assert alone.exclusive
    hand.flush(hand_backs=[HandBack(alone, 1)])
    assert not Hand(db, "worker-2").claim(exclude_exclusive=True).leases
    assert [lease.number for lease in hand.claim(9).leases] == [alone.number]


@pytest.mark.parametrize(
    ("device", "queues", "by_cpu", "by_cuda"),
    [
        ("cpu", ["cpu"], True, False),
        ("cuda", ["cpu", "cuda"], False, True),
        ("auto", ["cpu"], True, True),
        ("auto", ["cpu", "cuda"], False, True),
    ],
)
def test_devices(
    db: Database, hand: Hand, device: str, queues: list[str], by_cpu: bool, by_cuda: bool
) -> None:
    for queue in queues:
        worker(db, queue, queue)
    submitted(db, resources={"device": device})
    assert bool(hand.claim(1, queue="cpu").leases) == by_cpu
    assert bool(hand.claim(1, queue="cuda").leases) == by_cuda


def test_each_idle_worker_that_is_able_is_rung(db: Database) -> None:
    for name in ("one", "two", "three"):
        worker(db, name, "cpu")
    needing(db, "net")
    publish_modules(db, "one", {"net": ({}, "0" * 64)})
    publish_modules(db, "two", {"net": ({}, "0" * 64)})
    assert reconcile(db, settings=SETTINGS).rings == {"cpu": 2}, "the third cannot run it"
    with db.write() as connection:
        connection.execute(update(workers).values(state="busy"))
    assert reconcile(db, settings=SETTINGS).rings == {"cpu": 1}, "it may be idle since"
    assert Hand(db, "one").claim(64).leases
    assert reconcile(db, settings=SETTINGS).rings == {}


def test_auto_goes_to_the_cpu_when_the_cuda_worker_is_gone(db: Database, hand: Hand) -> None:
    worker(db, "gpu", "cuda")
    worker(db, "cpu", "cpu")
    submitted(db, resources={"device": "auto"})
    assert reconcile(db, settings=SETTINGS).rings == {"cuda": 1}
    with db.write() as connection:
        connection.execute(update(workers).where(workers.c.id == "gpu").values(heartbeat_at=0.0))
    assert reconcile(db, settings=SETTINGS).rings == {"cpu": 1}
    assert hand.claim().leases


def test_a_worker_that_is_not_heard_of_is_listed_as_lost(db: Database) -> None:
    worker(db, "silent", "cpu")
    trials = [{"study": "s", "number": 0}]
    worker_heartbeat(db, "silent", state="busy", lanes=4, current_trials=trials)
    (before,) = list_workers(db)
    with db.write() as connection:
        connection.execute(update(workers).values(heartbeat_at=workers.c.heartbeat_at - 16.0))
    (after,) = list_workers(db)
    assert [(one.state, one.current_trials) for one in (before, after)] == [
        ("busy", trials),
        ("lost", []),
    ]


def test_a_worker_of_a_time_to_come_leaves_the_list(db: Database) -> None:
    """It was heard of before the clock was set back, and not since."""
    worker(db, "lost", "cpu")
    publish_modules(db, "lost", {"net": ({}, "0" * 64)})
    with db.write() as connection:
        connection.execute(update(workers).values(heartbeat_at=workers.c.heartbeat_at + 3600))
    assert list_workers(db) == []
    assert listed_modules(db).known == {}
    worker(db, "new", "cpu")
    assert worker_heartbeat(db, "lost", state="idle", lanes=1, current_trials=[]) is False


@pytest.mark.parametrize(
    ("device", "queues", "reason"),
    [
        ("cuda", ["cpu"], "waiting for a worker with CUDA"),
        ("auto", [], "waiting for a worker"),
        ("cuda", ["cuda"], None),
        ("cpu", ["cpu"], None),
    ],
)
def test_a_study_that_nobody_can_run_says_so(
    db: Database, device: str, queues: list[str], reason: str | None
) -> None:
    for queue in queues:
        worker(db, queue, queue)
    asked = definition(resources={"device": device})
    assert plan(db, asked, settings=SETTINGS).warnings == [f"it would be {reason}"] * bool(reason)
    study = submitted(db, resources={"device": device})
    assert get_study(db, study.id).reason == reason


def test_a_lowered_parallelism_holds_from_the_next_claim(db: Database, hand: Hand) -> None:
    study = submitted(db, resources={"parallel_trials": 4})
    leases = hand.claim(2).leases
    patch(db, study.id, StudyPatch(parallel_trials=2), settings=SETTINGS)
    assert not hand.claim(2).leases
    hand.finish(leases[0], hand.start(leases[0]), 0.5)
    assert len(hand.claim(2).leases) == 1


def test_what_a_claim_says_of_its_studies(db: Database, hand: Hand) -> None:
    study = submitted(db, budget={"trials": 1, "timeout": "1h"})
    claimed = hand.claim()
    work: Any = claimed.studies[claimed.leases[0].study_id]
    assert (work.public_id, work.name, work.remaining_seconds) == (study.id, "small", 3600.0)
    assert work.definition == study.definition


def with_module(name: str) -> dict[str, ModuleDescription]:
    return {name: ModuleDescription(name=name, source_hash="0" * 64)}


def needing(db: Database, module: str, **changes: Any) -> StudyView:
    body = {"network": {"type": module}, **changes}
    return submit(db, definition(with_module(module), **body), settings=SETTINGS)[0]


@pytest.mark.parametrize(
    ("device", "queues", "has", "reason"),
    [
        (
            "auto",
            ["cpu"],
            [],
            "waiting for a worker with the module net (--modules DIR, or its package installed)",
        ),
        (
            "auto",
            ["cpu"],
            ["other"],
            "waiting for a worker with the module net (--modules DIR, or its package installed)",
        ),
        ("auto", ["cuda", "cpu"], ["net"], None),  # only the CPU's worker, named last, has it
        ("cuda", ["cpu"], ["net"], "waiting for a worker with CUDA and the module net"),
        ("auto", [], [], "waiting for a worker with the module net"),
    ],
)
def test_only_a_worker_with_a_studys_module_claims_its_slots(
    db: Database, hand: Hand, device: str, queues: list[str], has: list[str], reason: str | None
) -> None:
    for queue in queues:
        worker(db, queue, queue)
    if queues:
        publish_modules(db, queues[-1], {name: ({}, "0" * 64) for name in has})
    study = needing(db, "net", resources={"device": device})
    waits = get_study(db, study.id).reason
    assert waits == reason or (reason and waits and waits.startswith(reason))
    rings = reconcile(db, settings=SETTINGS).rings
    assert rings == ({} if reason else {queues[-1]: 1})
    for queue in queues:
        able = reason is None and queue == queues[-1]
        assert bool(Hand(db, queue).claim(1, queue=queue, fair_share=True).leases) == able
    assert not Hand(db, "unlisted").claim(1).leases


def test_a_study_whose_module_was_broken_later_is_told_where_the_reason_is(db: Database) -> None:
    worker(db, "one", "cpu")
    study = needing(db, "net")
    publish_modules(db, "one", {}, {"net.py": "the file is not Python", "other.py": "nor this"})
    assert get_study(db, study.id).reason == (
        "waiting for a worker with the module net (--modules DIR, or its package installed); not "
        "offered: net.py, see "
        "`tuner catalogue networks`"
    )
    assert not Hand(db, "one").claim(1).leases


def test_of_slots_that_must_run_alone_the_higher_priority_goes_first(
    db: Database, hand: Hand
) -> None:
    for name, priority in (("low", 0), ("high", 5)):
        submitted(db, name=name, budget={"trials": 1}, priority=priority)
    for _ in range(2):
        for lease in hand.claim(2).leases:
            shared_death(hand, lease, hand.start(lease))
    (lone,) = hand.claim(9).leases
    assert (names(db, [lone]), lone.exclusive) == (["high"], True)


def test_a_fair_share_counts_the_workers_that_can(db: Database) -> None:
    for name in ("one", "two", "three"):
        worker(db, name, "cpu")
    for name in ("one", "two"):
        publish_modules(db, name, {"net": ({}, "0" * 64)})
    needing(db, "net", budget={"trials": 6})
    assert len(Hand(db, "one").claim(9, fair_share=True).leases) == 3


def test_no_more_training_loops_are_claimed_than_there_is_room_for(db: Database) -> None:
    loop = ModuleDescription(name="loop", source_hash="0" * 64, defines=("train",), open=True)
    study = {"network": {"type": "loop"}, "dataset": None, "training": {}}
    submit(db, definition({"loop": loop}, name="loop", **study, priority=1), settings=SETTINGS)
    submitted(db)
    worker(db, "one", "cpu")
    publish_modules(db, "one", {"loop": ({}, "0" * 64)})
    one = Hand(db, "one")
    assert names(db, one.claim(3, loops=1).leases) == ["loop", "small", "small"]
    assert names(db, one.claim(1, loops=0).leases) == ["small"]
    assert len(one.claim(9).leases) == 4


def test_one_worker_makes_room_for_a_slot_that_must_run_alone(db: Database, hand: Hand) -> None:
    for name in ("worker-1", "worker-2"):
        worker(db, name, "cpu")
    other = submitted(db, name="other", priority=1, budget={"trials": 9})
    with db.read() as connection:
        busy = set(connection.execute(select(studies.c.id)).scalars())
    lone_study = submitted(db, name="lone", budget={"trials": 1}, priority=5)
    for _ in range(2):
        lease, trial_id = hand.claim_and_start()
        shared_death(hand, lease, trial_id)

    def to_serve(name: str) -> int | None:
        with db.read() as connection:
            return exclusive_slot_to_serve(
                connection, worker_id=name, queue="cpu", busy_with=busy, now=db.now(connection)
            )

    assert [to_serve(name) for name in ("worker-1", "worker-2")] == [lease.slot_id, None]
    worker_heartbeat(db, "worker-1", state="stopping", lanes=1, current_trials=())
    assert [to_serve(name) for name in ("worker-1", "worker-2")] == [None, lease.slot_id]
    patch(db, lone_study.id, StudyPatch(priority=0), settings=SETTINGS)
    assert to_serve("worker-2") is None, "it has nothing but what goes first"
    patch(db, other.id, StudyPatch(priority=0), settings=SETTINGS)
    assert to_serve("worker-2") == lease.slot_id
